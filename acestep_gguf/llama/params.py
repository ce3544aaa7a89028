"""Settings of a context and of sampling, under llama.cpp's names, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from acestep_gguf.errors import UsageError

FlashAttention = Literal["auto", "on", "off"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

# enum llama_flash_attn_type and enum ggml_type.
FLASH_ATTENTION: Final[dict[FlashAttention, int]] = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES: Final[dict[CacheType, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip
# Flag of CPUs for which llama.cpp repacks weights into AMX's layout. Built by GCC up to 12, its first call of
# several tokens crashes: GCC takes seven eighths of the tile configuration for stores that nobody reads.
AMX: Final = "amx_int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """llama.cpp's settings of a context, under llama.cpp's names.

    ``n_outputs_max`` is the number of positions of one call that may ask for logits; llama.cpp reserves
    ``n_vocab`` floats of memory for each.
    """

    n_ctx: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    flash_attn: FlashAttention = "auto"
    n_outputs_max: int = 1
    offload_kqv: bool = True

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 1, 2**24),
            ("n_batch", 1, 2**20),
            ("n_ubatch", 1, 2**20),
            ("n_threads", 1, 512),
            ("n_threads_batch", 1, 512),
            ("n_outputs_max", 1, 2**20),
        ):
            check_integer(name, getattr(self, name), least, most)
        _check_choice("type_k", self.type_k, CACHE_TYPES)
        _check_choice("type_v", self.type_v, CACHE_TYPES)
        _check_choice("flash_attn", self.flash_attn, FLASH_ATTENTION)
        if self.type_v not in ("f32", "f16", "bf16") and self.flash_attn == "off":
            raise UsageError(f"a V cache of {self.type_v} needs flash attention: leave it on, or use f16.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, under llama.cpp's names; ``temperature`` 0 takes the most probable one.

    ``seed`` None draws a new one each time. ``repeat_penalty`` 1 is off; it looks at the last 64 tokens.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 1e-3, 100.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:  # NaN fails both
                raise UsageError(f"{name} is {value!r}: give a number from {least:g} to {most:g}.")
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**32 - 2)


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Check a setting called ``name``.

    Raises:
        UsageError: it is no integer, or out of its range.
    """
    if not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}: give a whole number from {least} to {most}.")


def _check_choice(name: str, value: object, choices: Mapping[Any, int]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} is {value!r}: choose from {', '.join(choices)}.")
