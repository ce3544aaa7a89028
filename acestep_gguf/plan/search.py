"""The settings for one decoder and one context: what is best, and what is given up until it fits.

First come the settings that are best if there is room. While they do not fit, concessions are made in their
order; then each is taken back as far as there turns out to be room. On each try, as much as possible goes to
the GPUs. What was set by hand is never touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Final

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.options import CacheType, EngineOptions, TowerProvider
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.decoder_memory import kv_layer_bytes
from acestep_gguf.plan.draft import Draft
from acestep_gguf.plan.machine import Machine
from acestep_gguf.plan.machine_settings import MachineSettings
from acestep_gguf.plan.memory import GPU_RESERVE, Memory, placement_of, plan_memory
from acestep_gguf.plan.placement import RAM
from acestep_gguf.plan.prefill_memory import LEAST_ROWS
from acestep_gguf.plan.settings import Settings, Workload
from acestep_gguf.plan.speed import Rates, Work

N_BATCH: Final = 2048
SMALLER_N_UBATCH: Final = (256, 128)
SMALLER_CACHE_TYPES: Final[tuple[CacheType, ...]] = ("q8_0", "q4_0")
CACHE_BLOCK: Final = 32  # llama.cpp wants a head to fill whole blocks of a quantized cache
MORE_FAITHFUL_BITS: Final = 7.0  # a weight: Q8_0 is closer to float32 than int8 layers, Q6_K is not
VRAM_TO_RAM: Final = 10  # how many times faster, where it is not known
# So many times faster must a KV cache in RAM seem, since attention on the CPU slows prefill down, too.
KV_IN_RAM_COST: Final = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be planned, for what machine; ``defaults`` are best there if there is room.

    ``vision`` is the tower's precision, None where none is needed, and ``vision_provider`` runs it;
    ``int8_layers`` may read prompts.
    """

    bundle: BundleModel
    machine: Machine
    options: EngineOptions
    workload: Workload
    rates: Rates
    defaults: MachineSettings
    vision: VisionPrecision | None
    vision_provider: TowerProvider
    int8_layers: bool
    draft: Draft | None

    @property
    def n_image_tokens(self) -> int:
        """Positions that the pictures take in the context."""
        if self.workload.image_tokens is not None:
            return self.workload.image_tokens
        return self.bundle.image_tokens(self.workload.images, self.options)


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit, and what was given up for that; ``paged`` are bytes of weights that do not."""

    settings: Settings
    given_up: tuple[str, ...]
    paged: int = 0


@dataclass(frozen=True, slots=True)
class Concession:
    """Something that can be given up: changes of settings, the smallest first, and a phrase for each."""

    changes: Sequence[Mapping[str, Any]]
    phrase: Callable[[Mapping[str, Any]], str]


class Search:
    """One decoder and one context: what can be given up, and what fits.

    Raises:
        UsageError: what was set by hand contradicts itself.
    """

    def __init__(self, task: Task, quant: DecoderFtype, n_ctx: int) -> None:
        self.task = task
        self.model = task.bundle.decoder(quant)
        self.best = self._best(quant, n_ctx)
        self.best.context_params()  # refuses what contradicts itself
        self.concessions = tuple(self._concessions())

    def fit(self) -> Fit | None:
        """Settings with the fewest concessions, None if all of them are not enough."""
        made = [0] * len(self.concessions)  # for each, the number of its change
        while (settings := self._fitting(made)) is None:
            next_one = next((i for i, n in enumerate(made) if n < self._all_made()[i]), None)
            if next_one is None:
                return self._paged() if self.task.options.allow_paging else None
            made[next_one] += 1
        for index, last in enumerate(made):
            for less in range(last):
                tried = [*made[:index], less, *made[index + 1 :]]
                if taken_back := self._fitting(tried):
                    made, settings = tried, taken_back
                    break
        return Fit(settings, self._given_up(made))

    def shortage(self) -> tuple[int, str]:
        """Bytes that are missing with all concessions made, and of what kind of memory."""
        machine, memory = self.task.machine, self.memory(self._with_gpus(self._settings(self._all_made())))
        missing = [
            (memory.gpu(number) - gpu.memory, f"memory of {gpu.name}")
            for number, gpu in enumerate(machine.gpus, 1)
        ]
        return max([(memory.ram - machine.ram, "RAM"), *missing])

    def memory(self, settings: Settings) -> Memory:
        """What ``settings`` take, on each device."""
        task = self.task
        return plan_memory(
            task.bundle,
            settings,
            task.workload,
            n_gpus=len(task.machine.gpus),
            n_remote=task.machine.n_remote,
            shares_ram=task.machine.shares_ram,
            options=task.options,
            draft=task.draft,
        )

    def work(self, settings: Settings, *, n_past: int, paged: int = 0) -> Work:
        """What a token costs after ``n_past`` others, and a micro-batch of a prompt."""
        model, n_gpus = self.model, len(self.task.machine.gpus)
        placement = placement_of(model, settings, n_gpus)
        kv = kv_layer_bytes(model.shape, n_past, settings.type_k, settings.type_v)
        weights = [(placement.output, model.weights.output.nbytes)]
        for layer, attention, ffn in zip(
            model.weights.layers, placement.attention, placement.ffn, strict=True
        ):
            weights += [(attention, layer.attention_bytes), (ffn, layer.ffn_bytes)]
        in_ram = sum(n_bytes for device, n_bytes in weights if device == RAM)
        kv_in_ram = kv * placement.kv.count(RAM)
        everything = sum(n_bytes for _, n_bytes in weights) + kv * len(placement.kv)
        on_gpu = n_gpus and settings.uses_gpus
        return Work(
            ram=in_ram + kv_in_ram,
            vram=everything - in_ram - kv_in_ram,
            paged=min(paged, in_ram),
            cpu_weights=0 if on_gpu else model.n_multiplied,
            gpu_weights=model.n_multiplied if on_gpu else 0,
            weights_to_gpu=in_ram if on_gpu and settings.op_offload else 0,
            n_ubatch=settings.n_ubatch,
        )

    def _best(self, quant: DecoderFtype, n_ctx: int) -> Settings:
        """What was set by hand, and beside it what suits the machine."""
        task, options = self.task, self.task.options
        together = task.defaults.n_seq_max if options.n_parallel == -1 else options.n_parallel
        names = {field.name for field in fields(Settings)} - {
            "quant", "n_ctx", "vision", "vision_provider", "int8_layers", "rpc",
        }  # fmt: skip
        chosen = {"n_batch": N_BATCH, **asdict(task.defaults), "n_seq_max": together}
        if options.n_threads is not None:
            chosen |= dict.fromkeys(("n_threads_batch", "tower_threads"), options.n_threads)
        chosen |= {name: value for name in names if (value := getattr(options, name, None)) is not None}
        chosen["n_ubatch"] = min(chosen["n_ubatch"], chosen["n_batch"])
        return Settings(
            quant=quant,
            n_ctx=n_ctx,
            n_outputs_max=max(1 + options.n_guesses, together),
            vision=task.vision,
            vision_provider=task.vision_provider,
            int8_layers="kept" if self._wants_int8_layers(quant) else None,
            keep_states=options.cache is not False and task.workload.images > 0,
            rpc=options.rpc_addresses,
            # ggml's RPC has no offload_op: a server multiplies with weights that it has, and with no others.
            op_offload=not task.machine.n_remote or task.machine.n_remote < len(task.machine.gpus),
            **chosen,
        )

    def _concessions(self) -> Iterator[Concession]:
        """What can be given up, in the order in which it is."""
        options, best = self.task.options, self.best
        if best.keep_states:
            yield Concession([{}, {"keep_states": False}], lambda _: "decoder's state not kept on disk")
        if best.int8_layers:
            yield self._without_int8_layers()
        if options.n_parallel == -1:
            fewer = [best.n_seq_max >> halved for halved in range(best.n_seq_max.bit_length())]
            yield Concession(
                [{"n_seq_max": n} for n in fewer], lambda change: f"{change['n_seq_max']} answers at a time"
            )
        yield Concession(
            self._cache_types(), lambda change: f"KV cache {change.get('type_k', change['type_v'])}"
        )
        if options.n_ubatch is None:
            sizes = [best.n_ubatch, *(size for size in SMALLER_N_UBATCH if size < best.n_ubatch)]
            yield Concession(
                [{"n_ubatch": size} for size in sizes], lambda change: f"micro-batch {change['n_ubatch']}"
            )
        if self.task.workload.may_stage and best.vision is not None:
            yield Concession(
                [{}, {"staged": True}], lambda _: "tower staged: freed before the decoder is loaded"
            )
        if options.use_extra_bufts is None and best.use_extra_bufts:
            yield Concession([{}, {"use_extra_bufts": False}], lambda _: "weights not repacked")

    def _wants_int8_layers(self, quant: DecoderFtype) -> bool:
        """Unasked, only for decoders that do not read more faithfully themselves."""
        bits = self.task.bundle.bundle.decoders.files[quant].bits_per_weight
        is_asked = self.task.options.prefill == "int8"
        return self.task.int8_layers and (is_asked or bits < MORE_FAITHFUL_BITS)

    def _without_int8_layers(self) -> Concession:
        """Read from disk for each prompt only if it was asked for: that may be slower than llama.cpp."""
        if self.task.options.prefill == "int8":
            streamed = "int8 layers read from disk for each prompt"
            return Concession([{}, {"int8_layers": "streamed"}], lambda _: streamed)
        return Concession([{}, {"int8_layers": None}], lambda _: "prompts read by llama.cpp, not in int8")

    def _cache_types(self) -> list[Mapping[str, Any]]:
        options = self.task.options
        free = [name for name in ("type_k", "type_v") if getattr(options, name) is None]
        if not free or options.flash_attn == "off" or self.model.shape.n_embd_head % CACHE_BLOCK:
            return [{}]
        needed = {"flash_attn": "on"} if self.best.flash_attn == "off" else {}
        return [{}, *(dict.fromkeys(free, smaller) | needed for smaller in SMALLER_CACHE_TYPES)]

    def _settings(self, made: Sequence[int]) -> Settings:
        """The settings with these concessions, nothing on a GPU."""
        changes: dict[str, Any] = {}
        for concession, number in zip(self.concessions, made, strict=True):
            changes |= concession.changes[number]
        settings = replace(self.best, **changes)
        if settings.int8_layers is None or not settings.takes_int8_layers:
            return replace(settings, int8_layers=None)
        # llama.cpp gets no longer calls, so that its buffers need not be larger.
        wanted = self.task.options.n_ubatch
        return settings if wanted else replace(settings, n_ubatch=min(settings.n_ubatch, LEAST_ROWS))

    def _all_made(self) -> list[int]:
        return [len(concession.changes) - 1 for concession in self.concessions]

    def _given_up(self, made: Sequence[int]) -> tuple[str, ...]:
        pairs = zip(self.concessions, made, strict=True)
        return tuple(concession.phrase(concession.changes[number]) for concession, number in pairs if number)

    def _fitting(self, made: Sequence[int]) -> Settings | None:
        """The same with as much on the GPUs as fits, None if RAM or a GPU has no room for its part."""
        settings, machine = self._settings(made), self.task.machine
        everything = machine.ram + sum(gpu.memory - GPU_RESERVE * (not gpu.remote) for gpu in machine.gpus)
        if self.memory(settings).ram > everything:
            return None  # wherever it lies: this saves trying
        settings = self._with_gpus(settings)
        fits = self.memory(settings).ram <= machine.ram and self._fits_gpus(settings)
        return settings if fits else None

    def _paged(self) -> Fit | None:
        """With everything given up, and weights read from disk for every token."""
        made, ram = self._all_made(), self.task.machine.ram
        settings = self._with_gpus(self._settings(made))
        memory = self.memory(settings)
        if memory.anonymous > ram or not self._fits_gpus(settings) or not settings.use_mmap:
            return None
        return Fit(settings, self._given_up(made), paged=min(memory.mapped, memory.ram - ram))

    def _fits_gpus(self, settings: Settings) -> bool:
        gpus = self.task.machine.gpus
        if not gpus or not settings.uses_gpus:
            return True
        memory, machine = self.memory(settings), self.task.machine
        if machine.shares_ram and memory.ram > machine.ram:
            return False
        return all(memory.gpu(number) <= gpu.memory for number, gpu in enumerate(gpus, 1))

    def _with_gpus(self, settings: Settings) -> Settings:
        """As many layers on the GPUs as fit, then the attention of more; KV there unless RAM is faster."""
        if not self.task.machine.gpus:
            return settings
        wanted = self.task.options.offload_kqv
        tried = [
            self._most_layers(replace(settings, offload_kqv=choice))
            for choice in ((True, False) if wanted is None else (wanted,))
        ]
        best = min(tried, key=lambda one: self._decode_cost(one) * (1 if one.offload_kqv else KV_IN_RAM_COST))
        if best.n_gpu_layers == 0 and not self._fits_gpus(best):
            return replace(best, op_offload=False)
        return best

    def _decode_cost(self, settings: Settings) -> float:
        """Seconds that a token takes with a full context, or something in proportion to them."""
        work, rates = self.work(settings, n_past=settings.n_ctx), self.task.rates
        ram = rates.ram or 1.0
        return work.ram / ram + work.vram / (rates.vram or VRAM_TO_RAM * ram)

    def _most_layers(self, settings: Settings) -> Settings:
        n_layer = self.model.shape.n_layer

        def whole(n_gpu_layers: int) -> Settings:
            split = self._split(n_gpu_layers)
            placed = replace(settings, n_gpu_layers=n_gpu_layers, tensor_split=split)
            return placed if placed.takes_int8_layers else replace(placed, int8_layers=None)

        wanted = self.task.options.n_gpu_layers
        if wanted is not None:
            return whole(n_layer + 1 if wanted < 0 else min(wanted, n_layer + 1))
        most = self._largest_fitting(whole, n_layer + 1)
        if most > n_layer or len(self.task.machine.gpus) > 1:
            return whole(most)

        def with_attention(extra: int) -> Settings:
            return replace(
                whole(most + extra),
                n_attention_only=extra,
                cpu_tensors=mlp_tensors(range(n_layer + 1 - most - extra, n_layer + 1 - most)),
            )

        return with_attention(self._largest_fitting(with_attention, n_layer - most))

    def _largest_fitting(self, settings_of: Callable[[int], Settings], most: int) -> int:
        """The largest number up to ``most`` whose settings fit the GPUs; 0 fits in any case.

        What a layer takes hardly differs, so it is guessed from what the ends take, then corrected.
        """
        if most == 0 or self._fits_gpus(settings_of(most)):
            return most
        low, high = 0, most  # low fits, high does not
        while high - low > 1:
            guess = low + int(self._room(settings_of, low, high) * (high - low))
            guess = max(low + 1, min(high - 1, guess))
            low, high = (guess, high) if self._fits_gpus(settings_of(guess)) else (low, guess)
        return low

    def _room(self, settings_of: Callable[[int], Settings], low: int, high: int) -> float:
        """How far between two numbers of layers the fullest GPU is just full, as a share of the way."""
        if self.task.machine.shares_ram:
            return 0.5  # RAM may be what is full, and hardly depends on where layers lie
        least, most = self.memory(settings_of(low)), self.memory(settings_of(high))
        return min(
            (gpu.memory - least.gpu(number)) / max(1, most.gpu(number) - least.gpu(number))
            for number, gpu in enumerate(self.task.machine.gpus, 1)
        )

    def _split(self, n_gpu_layers: int) -> tuple[int, ...]:
        """Layers for each GPU, by its free memory."""
        sizes = [gpu.memory for gpu in self.task.machine.gpus]
        shares = [sum(sizes[:number]) / max(1, sum(sizes)) for number in range(len(sizes) + 1)]
        return tuple(end - start for start, end in pairwise(round(n_gpu_layers * share) for share in shares))


def mlp_tensors(layers: range) -> tuple[str, ...]:
    """The pattern of the names of these layers' MLP matrices."""
    numbers = "|".join(map(str, layers))
    return (rf"blk\.({numbers})\.ffn_(gate|up|down)\.weight",) if numbers else ()
