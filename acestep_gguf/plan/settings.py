"""What a plan is made for, and what it decides."""

from dataclasses import dataclass, fields
from typing import Final, Literal

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.llama.params import ContextParams, ModelParams
from acestep_gguf.options import TowerProvider

# Tokens that a template writes around a message; most write fewer.
TEMPLATE_TOKENS: Final = 64
# Where the int8 layers are: all of them kept in memory, or each read from disk when its turn comes.
Int8Layers = Literal["kept", "streamed"]
# Types of keys and values that others than llama.cpp can write: it rotates those that it quantizes.
FLOAT_CACHE_TYPES: Final = ("f32", "f16", "bf16")
# Memory for opening a photo of 12 megapixels, which is planned where the pictures are not known.
PHOTO_BYTES: Final = 8 * 12 * 10**6


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What will be asked, as far as it is known before anything is loaded.

    Args:
        images: pictures of one question.
        n_embeds: how many of them are given as image embeds, which need no tower.
        image_tokens: tokens of the pictures together, None if their sizes are not known.
        n_text: tokens of its messages and of the answer together, at most; None if that is not known.
        n_text_before: tokens of text before its last picture, at most.
        n_text_after: tokens of text behind it, at most, if ``n_text`` is known.
        opening_ahead: memory in bytes, at most, for opening one of the pictures before anything is loaded.
        opening_later: the same when everything is loaded.
        may_stage: the pictures are known and few enough to be encoded before the decoder is loaded.
    """

    images: int = 1
    n_embeds: int = 0
    image_tokens: int | None = None
    n_text: int | None = None
    n_text_before: int = TEMPLATE_TOKENS
    n_text_after: int = 0
    opening_ahead: int = PHOTO_BYTES
    opening_later: int = 0
    may_stage: bool = True

    @property
    def n_encoded(self) -> int:
        """Pictures that the tower has to encode."""
        return self.images - self.n_embeds


@dataclass(frozen=True, kw_only=True)
class Settings(ModelParams, ContextParams):
    """What a plan decides: all settings of llama.cpp's model and context, and of the tower.

    Args:
        quant: the decoder.
        n_attention_only: layers among ``n_gpu_layers`` whose MLP stays in RAM, by way of ``cpu_tensors``.
        vision: the tower, None without pictures.
        vision_provider: what of onnxruntime runs it.
        tower_threads: threads of the tower.
        staged: the tower is freed before the decoder is loaded.
        keep_states: the decoder's state after a picture is copied, to be kept on disk.
        int8_layers: read long parts of a prompt in the place of llama.cpp, None if they do not.
    """

    quant: DecoderFtype
    n_attention_only: int = 0
    vision: VisionPrecision | None = None
    vision_provider: TowerProvider = "cpu"
    tower_threads: int = 1
    staged: bool = False
    keep_states: bool = False
    int8_layers: Int8Layers | None = None

    def __post_init__(self) -> None:
        ModelParams.__post_init__(self)
        ContextParams.__post_init__(self)

    @property
    def takes_int8_layers(self) -> bool:
        """Whether llama.cpp can go on from what they compute: from floats in RAM."""
        return self.n_gpu_layers == 0 and {self.type_k, self.type_v} <= set(FLOAT_CACHE_TYPES)

    @property
    def uses_gpus(self) -> bool:
        """Whether GPUs that are there get anything."""
        return self.n_gpu_layers != 0 or self.op_offload

    def model_params(self) -> ModelParams:
        """The part that is the model's."""
        return ModelParams(**{field.name: getattr(self, field.name) for field in fields(ModelParams)})

    def context_params(self) -> ContextParams:
        """The part that is the context's."""
        return ContextParams(**{field.name: getattr(self, field.name) for field in fields(ContextParams)})
