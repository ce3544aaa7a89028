"""The settings that suit this machine and this model: what ``acestep-gguf tune`` measured, or a guess."""

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

import msgspec
import psutil

from acestep_gguf.bundle.schema import Bundle, DecoderFile
from acestep_gguf.cpus import cpu_flags, cpu_name, usable_cpus
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.params import AMX, MOST_THREADS, ContextParams
from acestep_gguf.options import FlashAttention, check_integer
from acestep_gguf.plan.cgroup import cgroup_limits
from acestep_gguf.plan.machine import usable_threads
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.storage.cache_folder import cache_folder

SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 2**20
# Measured on Zen 5: weights in llama.cpp's repacked layout make prefill slower there (docs/speed.md).
SLOW_REPACKING: Final = frozenset({"avx512_vnni"})
# Repacked weights are a second copy, in memory that cannot be dropped like a mapped file.
REPACKED_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """Settings, under llama.cpp's names, that decide how fast an answer comes and what memory it takes.

    ``n_threads`` are those that write the answer, ``n_threads_batch`` those that read the prompt.
    ``use_extra_bufts`` repacks weights for the CPU while loading. ``n_seq_max`` answers are written together
    where as many as fit were asked for: more gain little beside the memory of their contexts.
    """

    use_extra_bufts: bool
    n_threads: int
    n_threads_batch: int
    n_ubatch: int = 512
    flash_attn: FlashAttention = "auto"
    tower_threads: int
    n_seq_max: int = 16

    def __post_init__(self) -> None:
        self.context_params(n_ctx=1, n_seq_max=self.n_seq_max)  # refuses what is out of its range
        check_integer("tower_threads", self.tower_threads, 1, MOST_THREADS)

    def context_params(self, *, n_ctx: int, n_seq_max: int = 1, n_outputs_max: int = 1) -> ContextParams:
        """A context with these settings; see ContextParams."""
        return ContextParams(
            n_ctx=n_ctx,
            n_seq_max=n_seq_max,
            n_outputs_max=max(n_outputs_max, n_seq_max),
            n_ubatch=self.n_ubatch,
            n_threads=self.n_threads,
            n_threads_batch=self.n_threads_batch,
            flash_attn=self.flash_attn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What settings were tuned for: they hold for nothing else."""

    cpu: str
    cpus: int
    llama_cpp: str
    decoder_sha256: str
    tower_sha256: str | None

    @classmethod
    def of(cls, bundle: Bundle, decoder: DecoderFile) -> Self:
        """This machine with a decoder and the default tower of ``bundle``, by the hashes that it records."""
        vision = bundle.vision
        return cls(
            cpu=cpu_name(),
            cpus=usable_cpus(),
            llama_cpp=version("llama-cpp-python"),
            decoder_sha256=decoder.sha256,
            tower_sha256=None if vision is None else vision.files[vision.default].sha256,
        )

    def path(self) -> Path:
        """File in the cache folder that keeps the settings."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return cache_folder() / "tuned" / f"{digest[:32]}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The file that ``tune`` writes."""

    schema_version: int
    subject: Subject
    settings: MachineSettings
    reason: str

    def write(self) -> Path:
        """Keep it for this machine.

        Raises:
            OSError: it cannot be written.
        """
        path = self.subject.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [msgspec.json.format(msgspec.json.encode(self), indent=2), b"\n"])
        return path


def machine_settings(bundle: Bundle, decoder: DecoderFile, *, pictures: bool) -> tuple[MachineSettings, str]:
    """The settings to use, and one line that says why: tuned ones if there are any, else a guess.

    Args:
        bundle: the model.
        decoder: the one of its decoders that will be used.
        pictures: whether questions will be about pictures, so that prefill takes most of the time.
    """
    subject = Subject.of(bundle, decoder)
    settings, reason = guess(decoder.bytes, pictures=pictures)
    try:
        tuned = _read(subject)
    except FileNotFoundError:
        return settings, f"guessed: {reason}"
    except (OSError, ValueError, RecursionError, UsageError) as error:  # msgspec's are ValueErrors
        return settings, f"guessed, since what was tuned cannot be read ({error}), tune again: {reason}"
    return tuned.settings, f"tuned: {tuned.reason}"


def _read(subject: Subject) -> Tuned:
    path = subject.path()
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path.name} is too large")
    tuned = msgspec.json.decode(data, type=Tuned)
    if tuned.schema_version != SCHEMA_VERSION or tuned.subject != subject:
        raise ValueError(f"{path.name} was made for something else")
    most = max(tuned.settings.n_threads, tuned.settings.n_threads_batch, tuned.settings.tower_threads)
    if most > subject.cpus:
        raise ValueError(f"{path.name} has {most} threads on {subject.cpus} CPUs")
    return tuned


def guess(decoder_bytes: int, *, pictures: bool) -> tuple[MachineSettings, str]:
    """Settings from what is known without measuring, and why repacking is on or off."""
    settings = plain_settings(usable_threads(cgroup_limits().cpus))
    if obstacle := repacking_obstacle(decoder_bytes):
        return settings, f"no repacking, {obstacle}"
    if pictures and SLOW_REPACKING & cpu_flags():
        return settings, "no repacking, it slows reading pictures on CPUs with AVX-512 VNNI"
    return replace(settings, use_extra_bufts=True), "repacking, llama.cpp's default"


def plain_settings(n_threads: int) -> MachineSettings:
    """llama.cpp's defaults without repacking, on so many threads."""
    return MachineSettings(
        use_extra_bufts=False, n_threads=n_threads, n_threads_batch=n_threads, tower_threads=n_threads
    )


def repacking_obstacle(decoder_bytes: int) -> str | None:
    """Why weights cannot be repacked here, None if they can.

    All memory counts, not what is free now: a guess must be the same tomorrow, since what is cached depends
    on it.
    """
    if AMX in cpu_flags():
        return "llama.cpp's AMX kernels crash where GCC up to 12 built them"
    if decoder_bytes > int(REPACKED_SHARE * psutil.virtual_memory().total):
        return "memory has no room for a second copy of the weights"
    return None
