"""All settings of a model and of a context, under llama.cpp's names, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from acestep_gguf.addresses import Address
from acestep_gguf.cpus import cpu_flags
from acestep_gguf.errors import UsageError
from acestep_gguf.options import CacheType, FlashAttention, check_integer

# enum llama_flash_attn_type and enum ggml_type.
FLASH_ATTENTION: Final[dict[FlashAttention, int]] = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES: Final[dict[CacheType, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30,
}  # fmt: skip
# Flag of CPUs for which llama.cpp repacks weights into AMX's layout. Built by GCC up to 12, its first call of
# several tokens crashes: GCC takes seven eighths of the tile configuration for stores that nobody reads.
AMX: Final = "amx_int8"
MOST_SEQUENCES: Final = 256  # LLAMA_MAX_SEQ
MOST_THREADS: Final = 512  # GGML_MAX_N_THREADS


@dataclass(frozen=True, kw_only=True)
class ModelParams:
    """llama.cpp's settings of a model.

    Args:
        n_gpu_layers: layers to keep on GPUs, -1 for all.
        cpu_tensors: patterns of names of tensors that stay in RAM nevertheless (``--override-tensor …=CPU``).
        tensor_split: layers for each of several GPUs.
        rpc: servers whose devices come after this machine's GPUs, if there are layers on GPUs at all.
        use_mmap: map the file instead of reading it.
        use_mlock: keep the weights from being paged out.
        use_extra_bufts: repack weights for the CPU while loading (``--repack``).
    """

    n_gpu_layers: int = 0
    cpu_tensors: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    rpc: tuple[Address, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    use_extra_bufts: bool = False

    def __post_init__(self) -> None:
        check_integer("n_gpu_layers", self.n_gpu_layers, -1, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class ContextParams:
    """llama.cpp's settings of a context, under llama.cpp's names.

    ``n_ctx`` positions are for each of ``n_seq_max`` sequences, which share nothing (a stream each).
    ``n_outputs_max`` is the number of positions of one call that may ask for logits; llama.cpp reserves
    ``n_vocab`` floats of memory for each. ``op_offload`` lets a GPU multiply long prompts with weights that
    lie in RAM, which takes a buffer there even if no layer does.
    """

    n_ctx: int
    n_seq_max: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 1
    n_threads_batch: int = 1
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    flash_attn: FlashAttention = "auto"
    n_outputs_max: int = 1
    offload_kqv: bool = True
    op_offload: bool = True

    @property
    def transposes_values(self) -> bool:
        """Whether values lie transposed, which they do without flash attention; on CPUs "auto" is with it."""
        return self.flash_attn == "off"

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 1, 2**24),
            ("n_seq_max", 1, MOST_SEQUENCES),
            ("n_batch", 1, 2**20),
            ("n_ubatch", 1, 2**20),
            ("n_threads", 1, MOST_THREADS),
            ("n_threads_batch", 1, MOST_THREADS),
            ("n_outputs_max", 1, 2**20),
        ):
            check_integer(name, getattr(self, name), least, most)
        _check_choice("type_k", self.type_k, CACHE_TYPES)
        _check_choice("type_v", self.type_v, CACHE_TYPES)
        _check_choice("flash_attn", self.flash_attn, FLASH_ATTENTION)
        if self.type_v not in ("f32", "f16", "bf16") and self.flash_attn == "off":
            raise UsageError(
                f"type_v {self.type_v} needs flash attention: leave flash_attn on, or use f16.",
                settings=["type_v", "flash_attn"],
            )


def _check_choice(name: str, value: object, choices: Mapping[Any, int]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} is {value!r}: choose from {', '.join(choices)}.", settings=[name])


def check_repacking(use_extra_bufts: bool | None) -> None:
    """Refuse to repack weights where llama.cpp would end the process.

    Raises:
        UsageError: the CPU has AMX.
    """
    if use_extra_bufts and AMX in cpu_flags():
        raise UsageError(
            "use_extra_bufts cannot be used on this CPU: llama.cpp would crash in its AMX kernels.",
            settings=["use_extra_bufts"],
        )
