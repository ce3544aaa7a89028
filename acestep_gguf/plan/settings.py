"""What a plan decides, and what was decided by hand before it."""

from dataclasses import dataclass, fields
from typing import Any

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.llama.params import CacheType, ContextParams, FlashAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings under llama.cpp's names.

    ``n_attention_only`` of the ``n_gpu_layers`` keep their MLP in RAM. ``tensor_split`` are layers for each
    GPU. ``vision`` is None without pictures; ``staged`` frees the tower before the decoder is loaded.
    """

    quant: DecoderFtype
    n_ctx: int
    n_batch: int
    n_ubatch: int
    type_k: CacheType
    type_v: CacheType
    flash_attn: FlashAttention
    n_threads: int
    n_threads_batch: int
    n_gpu_layers: int = 0
    n_attention_only: int = 0
    tensor_split: tuple[int, ...] = ()
    offload_kqv: bool = True
    use_mmap: bool = True
    use_mlock: bool = False
    use_extra_bufts: bool = False
    vision: VisionPrecision | None = None
    staged: bool = False
    n_outputs_max: int = 1

    def loading(self, n_layer: int) -> dict[str, Any]:
        """The part that is a model's, of ``n_layer`` layers: arguments of ``llama.Model``."""
        first = n_layer + 1 - self.n_gpu_layers
        numbers = "|".join(str(first + i) for i in range(self.n_attention_only))
        return {
            "n_gpu_layers": self.n_gpu_layers,
            "cpu_tensors": [rf"blk\.({numbers})\.ffn_(gate|up|down)\.weight"] if numbers else [],
            "tensor_split": self.tensor_split,
            "use_mmap": self.use_mmap,
            "use_mlock": self.use_mlock,
            "use_extra_bufts": self.use_extra_bufts,
        }

    def context_params(self) -> ContextParams:
        """The part that is a context's."""
        names = {field.name for field in fields(ContextParams)}
        return ContextParams(**{name: value for name, value in as_dict(self).items() if name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was set by hand, and is kept; None is left to the plan. See ``Settings``.

    ``n_ctx_needed`` tokens will do, so the context has no more of them unless ``n_ctx`` says so.
    ``images`` pictures will be asked about at once. ``staged`` is None where they are known before the
    decoder is loaded. ``allow_paging``: weights may be read from disk again and again during an answer.
    """

    quant: str | None = None
    n_ctx: int | None = None
    n_ctx_needed: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    type_k: CacheType | None = None
    type_v: CacheType | None = None
    flash_attn: FlashAttention | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_gpu_layers: int | None = None
    offload_kqv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    use_extra_bufts: bool | None = None
    vision: VisionPrecision | None = None
    n_outputs_max: int = 1
    images: int = 1
    staged: bool | None = None
    allow_paging: bool = False


def as_dict(settings: Settings | Wish) -> dict[str, Any]:
    """Fields by name."""
    return {field.name: getattr(settings, field.name) for field in fields(settings)}
