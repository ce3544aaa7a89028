"""Finding the settings that suit this machine and a model, by measuring the few that matter.

A bounded search, one setting after another: the value in use keeps its place unless another one is faster by
more than noise. A value that loses its first round is not measured again, so that a minute is enough for a
model that is not too large for the machine.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, Literal, TypeVar

import numpy as np
import psutil

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ModelParams
from acestep_gguf.plan.decoder_memory import DecoderShape, decoder_shape, state_bytes
from acestep_gguf.plan.machine_settings import (
    SCHEMA_VERSION,
    MachineSettings,
    Subject,
    Tuned,
    guess,
    repacking_obstacle,
)
from acestep_gguf.vision.tower import VisionTower

DEFAULT_BUDGET_S: Final = 60.0
ROUNDS: Final = 3
MARGIN: Final = 1.03  # a setting has to be faster by so much to be preferred to llama.cpp's default
NEVER_BELOW: Final = 0.98  # of the prefill speed at llama.cpp's defaults
ROUND_SHARE: Final = 1 / 50  # of the budget, for one measurement of prefill
PROBE_TOKENS: Final = 32
MOST_PREFILL: Final = 512
DECODE_TOKENS: Final = 16

# A typical request, by which repacking is judged: it costs loading time, and may gain or lose either speed.
TEXT_TOKENS: Final = 64
ANSWER_TOKENS: Final = 128

MICRO_BATCHES: Final = (256, 1024)

# Numbers of answers that are written together, each in a stream of its own (llama.cpp's unified cache gains
# nothing from more than 8), and how many tokens of each are measured at a time.
TOGETHER: Final = (4, 8, 16, 32)
TOGETHER_TOKENS: Final = 4
ROOM_SHARE: Final = 1 / 4  # of the memory that is free, for the keys and values of all of them

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one value of one setting gave; None is what was not measured. Speeds are tokens a second.

    ``decode`` of several sequences is that of all of them together.
    """

    setting: str
    value: object
    load_s: float | None = None
    prefill: float | None = None
    decode: float | None = None
    tower_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The outcome: what to keep, all that was measured, what there was no time for, and seconds taken."""

    tuned: Tuned
    trials: tuple[Trial, ...]
    skipped: tuple[str, ...]
    seconds: float


def tune(folder: Path, *, quant: str | None = None, budget_s: float = DEFAULT_BUDGET_S) -> Tuning:
    """Measure a bundle's decoder and tower on this machine, which should do nothing else meanwhile.

    Args:
        folder: the bundle.
        quant: decoder to measure; by default the bundle's default.
        budget_s: seconds after which no further setting is tried.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        DecodeError: llama.cpp or onnxruntime failed.
    """
    bundle = Bundle.read(folder)
    record = bundle.decoder(quant)
    path = check_file(folder, record)
    header = read_gguf_header(path)
    decoder_info(header)
    search = _Search(folder, bundle, path, decoder_shape(header), budget_s)
    settings, reason = search.run()
    tuned = Tuned(
        schema_version=SCHEMA_VERSION,
        subject=Subject.of(bundle, record),
        settings=settings,
        reason=reason,
    )
    return Tuning(
        tuned=tuned,
        trials=tuple(search.trials),
        skipped=tuple(search.skipped),
        seconds=search.elapsed(),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """A setting, other values to try, and the speed at ``n_tokens`` by which they are judged."""

    setting: str
    values: Sequence[object]
    goal: Literal["prefill", "decode"]
    n_tokens: int


class _Search:
    def __init__(
        self, folder: Path, bundle: Bundle, decoder: Path, shape: DecoderShape, budget_s: float
    ) -> None:
        self._folder = folder
        self._bundle = bundle
        self._decoder = decoder
        self._shape = shape
        self._budget_s = budget_s
        self._began = perf_counter()
        self._n_bytes = decoder.stat().st_size
        self._n_prompt = TEXT_TOKENS + (bundle.image.n_image_tokens if bundle.image else 0)
        self._n_prefill = PROBE_TOKENS
        self.trials: list[Trial] = []
        self.skipped: list[str] = []

    def elapsed(self) -> float:
        """Seconds since the search began."""
        return perf_counter() - self._began

    def run(self) -> tuple[MachineSettings, str]:
        """The settings, and why repacking is on or off."""
        settings, reason = self._choose_repacking()
        fewer = _halves(settings.n_threads)
        large = min(self._n_prompt, max(MICRO_BATCHES))
        batches = [n_ubatch for n_ubatch in MICRO_BATCHES if n_ubatch <= large]
        with Model(self._decoder, ModelParams(use_extra_bufts=settings.use_extra_bufts)) as model:
            bench = _Bench(model)
            n = self._n_prefill
            settings = self._choose(bench, settings, _Step("n_threads_batch", fewer, "prefill", n))
            settings = self._choose(bench, settings, _Step("n_threads", fewer, "decode", DECODE_TOKENS))
            settings = self._choose(bench, settings, _Step("flash_attn", ("off",), "prefill", n))
            settings = self._choose_tower_threads(settings, fewer)
            settings = self._choose(bench, settings, _Step("n_ubatch", batches, "prefill", large))
            settings = self._choose_sequences(bench, settings)
        return settings, reason

    def _choose_repacking(self) -> tuple[MachineSettings, str]:
        plain = replace(guess(self._n_bytes, pictures=False)[0], use_extra_bufts=False)
        without = self._try_repacking(plain)
        if obstacle := repacking_obstacle(self._n_bytes):
            self.skipped.append(f"repacking ({obstacle})")
            return plain, f"no repacking, {obstacle}"
        default = self._try_repacking(replace(plain, use_extra_bufts=True))
        repack = not worth_leaving(default, without, self._n_prompt)
        return replace(plain, use_extra_bufts=repack), _reason(default, without, repack)

    def _try_repacking(self, settings: MachineSettings) -> Trial:
        """Speeds with or without repacking; the first time, also how many tokens suit this machine."""
        began = perf_counter()
        with Model(self._decoder, ModelParams(use_extra_bufts=settings.use_extra_bufts)) as model:
            load_s = perf_counter() - began
            bench = _Bench(model)
            with bench.open(settings):
                if not self.trials:
                    speed = bench.prefill(settings, PROBE_TOKENS)
                    wanted = int(speed * self._budget_s * ROUND_SHARE) // PROBE_TOKENS * PROBE_TOKENS
                    self._n_prefill = min(max(wanted, PROBE_TOKENS), MOST_PREFILL)
                trial = Trial(
                    setting="use_extra_bufts",
                    value=settings.use_extra_bufts,
                    load_s=load_s,
                    prefill=median(bench.prefill(settings, self._n_prefill) for _ in range(ROUNDS)),
                    decode=median(bench.decode(settings, DECODE_TOKENS) for _ in range(ROUNDS)),
                )
        self.trials.append(trial)
        return trial

    def _choose(self, bench: "_Bench", settings: MachineSettings, step: "_Step") -> MachineSettings:
        """Settings with the best value of one of them, which may be the one that it has."""
        changes: list[dict[str, Any]] = [{step.setting: value} for value in step.values]
        candidates = [replace(settings, **change) for change in changes]
        known = _fastest(self.trials, step.goal)
        if not self._has_time(step.setting, (1 + len(candidates)) * step.n_tokens / known):
            return settings
        measure = {"prefill": bench.prefill, "decode": bench.decode}[step.goal]
        with ExitStack() as opened:
            for candidate in (settings, *candidates):
                opened.enter_context(bench.open(candidate))
            winner, speeds = compete(settings, candidates, lambda one: measure(one, step.n_tokens))
        self.trials += [
            Trial(setting=step.setting, value=getattr(one, step.setting), **{step.goal: speed})
            for one, speed in speeds.items()
        ]
        return winner

    def _choose_tower_threads(self, settings: MachineSettings, fewer: Sequence[int]) -> MachineSettings:
        if self._bundle.image is None:
            return settings
        size = self._bundle.image.size
        pixels = np.random.default_rng(0).standard_normal((1, 3, size.height, size.width), np.float32)
        towers: dict[int, VisionTower] = {}

        def speed(n_threads: int) -> float:
            if n_threads not in towers:
                towers[n_threads] = VisionTower(self._folder, self._bundle, n_threads=n_threads)
            began = perf_counter()
            towers[n_threads].encode(pixels)
            return 1 / (perf_counter() - began)

        most = settings.tower_threads
        if not self._has_time("tower_threads", (2 + len(fewer)) / speed(most)):
            return settings
        winner, speeds = compete(most, fewer, speed)
        self.trials += [
            Trial(setting="tower_threads", value=n_threads, tower_s=1 / pictures_per_s)
            for n_threads, pictures_per_s in speeds.items()
        ]
        return replace(settings, tower_threads=winner)

    def _choose_sequences(self, bench: "_Bench", settings: MachineSettings) -> MachineSettings:
        """Settings with the fewest sequences that make a request take hardly longer than the best number."""
        n_steps = (1 + ROUNDS) * TOGETHER_TOKENS
        n_past = min(self._n_prompt, self._shape.n_ctx_train - n_steps * len(TOGETHER))
        kv_bytes = state_bytes(self._shape, n_past, "f16", "f16")
        room = int(ROOM_SHARE * psutil.virtual_memory().available)
        numbers = [n for n in TOGETHER if n * kv_bytes <= room]
        if not numbers:
            self.skipped.append("n_seq_max (no memory left)")
            return settings
        prefill, decode = (_fastest(self.trials, goal) for goal in ("prefill", "decode"))
        if not self._has_time("n_seq_max", n_past / prefill + sum(numbers) * n_steps / decode):
            return settings
        request_s = {}
        for n, speed in bench.together(settings, numbers, n_past):
            self.trials.append(Trial(setting="n_seq_max", value=n, decode=speed))
            request_s[n] = n_past / prefill + ANSWER_TOKENS / speed
        best = min(request_s.values())
        return replace(settings, n_seq_max=next(n for n in numbers if request_s[n] <= MARGIN * best))

    def _has_time(self, name: str, seconds: float) -> bool:
        if self.elapsed() + seconds <= self._budget_s:
            return True
        self.skipped.append(f"{name} (no time left)")
        return False


class _Bench:
    """Contexts over one model that are measured in turn."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._contexts: dict[MachineSettings, Context] = {}
        generator = np.random.default_rng(0)
        self._tokens: list[int] = generator.integers(0, model.n_vocab, max(MICRO_BATCHES)).tolist()

    @contextmanager
    def open(self, settings: MachineSettings) -> Iterator[None]:
        """Make a context, for as long as it is needed."""
        params = settings.context_params(n_ctx=min(max(MICRO_BATCHES), self._model.n_ctx_train))
        with Context(self._model, params) as self._contexts[settings]:
            # The first call is slower: memory is touched, files are read.
            self.prefill(settings, PROBE_TOKENS)
            yield
        del self._contexts[settings]

    def prefill(self, settings: MachineSettings, n_tokens: int) -> float:
        """Tokens a second of one call with ``n_tokens``."""
        context = self._contexts[settings]
        tokens = self._tokens[: min(n_tokens, context.params.n_ctx)]
        context.keep(0)
        began = perf_counter()
        context.decode_tokens(tokens, 0, n_outputs=1)
        context.logits()  # waits until it is computed
        return len(tokens) / (perf_counter() - began)

    def decode(self, settings: MachineSettings, n_tokens: int) -> float:
        """Tokens a second, one in each call."""
        context = self._contexts[settings]
        n_tokens = min(n_tokens, context.params.n_ctx)
        context.keep(0)
        began = perf_counter()
        for position in range(n_tokens):
            context.decode_tokens([self._tokens[position]], position, n_outputs=1)
            context.logits()
        return n_tokens / (perf_counter() - began)

    def together(
        self, settings: MachineSettings, numbers: Sequence[int], n_past: int
    ) -> Iterator[tuple[int, float]]:
        """Tokens a second of so many sequences, all together, each after ``n_past`` tokens."""
        most = max(numbers)
        n_ctx = n_past + len(numbers) * (1 + ROUNDS) * TOGETHER_TOKENS
        params = settings.context_params(n_ctx=n_ctx, n_seq_max=most)
        with Context(self._model, params) as context:
            for start in range(0, n_past, context.n_batch):
                tokens = np.resize(self._tokens, n_past)[start : start + context.n_batch]
                context.decode_tokens(tokens.tolist(), start)
            for sequence in range(1, most):
                context.copy(0, sequence)
            for n in numbers:
                speeds = [self._write(context, n) for _ in range(1 + ROUNDS)]
                yield n, median(speeds[1:])  # the first touches memory

    def _write(self, context: Context, n_sequences: int) -> float:
        """Tokens a second of a few more tokens of each sequence."""
        sequences = range(n_sequences)
        began = perf_counter()
        for _ in range(TOGETHER_TOKENS):
            positions = [context.n_past(sequence) for sequence in sequences]
            context.decode_each(self._tokens[:n_sequences], positions, sequences)
            context.logits()
        return n_sequences * TOGETHER_TOKENS / (perf_counter() - began)


def _fastest(trials: Sequence[Trial], goal: Literal["prefill", "decode"]) -> float:
    speeds: list[float | None] = [getattr(trial, goal) for trial in trials]
    return max(speed for speed in speeds if speed is not None)


def compete(champion: T, challengers: Sequence[T], speed: Callable[[T], float]) -> tuple[T, dict[T, float]]:
    """The fastest, by the median of rounds in turn, and all speeds.

    A challenger that loses its first round is not measured again.
    """
    rounds: dict[T, list[float]] = {champion: [speed(champion)]}
    for challenger in challengers:
        rounds[challenger] = [speed(challenger)]
        if not _beats(rounds[challenger], rounds[champion]):
            continue
        for _ in range(ROUNDS - 1):
            for one in (champion, challenger):
                rounds[one].append(speed(one))
        if _beats(rounds[challenger], rounds[champion]):
            champion = challenger
    return champion, {one: median(speeds) for one, speeds in rounds.items()}


def _beats(challenger: Sequence[float], champion: Sequence[float]) -> bool:
    return median(challenger) > MARGIN * median(champion)


def _halves(threads: int) -> list[int]:
    return [threads // divisor for divisor in (2, 4) if threads // divisor]


def worth_leaving(default: Trial, without: Trial, n_prompt: int) -> bool:
    """Whether to leave llama.cpp's default, repacking: for a faster request, but never for slower prefill."""
    prefill = _known(without.prefill) / _known(default.prefill)
    return prefill >= NEVER_BELOW and _request_s(default, n_prompt) > MARGIN * _request_s(without, n_prompt)


def _request_s(trial: Trial, n_prompt: int) -> float:
    read_s, write_s = n_prompt / _known(trial.prefill), ANSWER_TOKENS / _known(trial.decode)
    return _known(trial.load_s) + read_s + write_s


def _reason(default: Trial, without: Trial, repack: bool) -> str:
    chosen, other = (default, without) if repack else (without, default)
    return (
        f"{'repacking' if repack else 'no repacking'}, "
        f"prefill {_known(chosen.prefill):.0f} against {_known(other.prefill):.0f} tokens/s, "
        f"decode {_known(chosen.decode):.1f} against {_known(other.decode):.1f}, "
        f"load {_known(chosen.load_s):.1f} s against {_known(other.load_s):.1f} s"
    )


def _known(value: float | None) -> float:
    assert value is not None  # noqa: S101 (both trials of repacking measure all three)
    return value
