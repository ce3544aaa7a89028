"""What a plan is made for, and what it decides."""

from dataclasses import dataclass, fields

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.llama.params import ContextParams, ModelParams


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What will be asked, as far as it is known before anything is loaded.

    Args:
        images: pictures of one question.
        n_text: tokens of its messages and of the answer together, at most; None if nobody knows.
        may_stage: the pictures are known and few enough to be encoded before the decoder is loaded.
    """

    images: int = 1
    n_text: int | None = None
    may_stage: bool = True


@dataclass(frozen=True, kw_only=True)
class Settings(ModelParams, ContextParams):
    """What a plan decides: all settings of llama.cpp's model and context, and of the tower.

    Args:
        quant: the decoder.
        n_attention_only: layers among ``n_gpu_layers`` whose MLP stays in RAM, by way of ``cpu_tensors``.
        vision: the tower, None without pictures.
        tower_threads: threads of the tower.
        staged: the tower is freed before the decoder is loaded.
    """

    quant: DecoderFtype
    n_attention_only: int = 0
    vision: VisionPrecision | None = None
    tower_threads: int = 1
    staged: bool = False

    def __post_init__(self) -> None:
        ModelParams.__post_init__(self)
        ContextParams.__post_init__(self)

    def model_params(self) -> ModelParams:
        """The part that is the model's."""
        return ModelParams(**{field.name: getattr(self, field.name) for field in fields(ModelParams)})

    def context_params(self) -> ContextParams:
        """The part that is the context's."""
        return ContextParams(**{field.name: getattr(self, field.name) for field in fields(ContextParams)})
