"""config.json, parsed once. Omitted keys mean the defaults of transformers' config classes.

Names are Hugging Face's here and GGUF's from the converters on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from acestep_gguf.convert.checkpoint.families import ARCHITECTURES, LLAVA, ArchitectureFamily
from acestep_gguf.convert.checkpoint.part_families import (
    CLIP,
    DECODERS,
    QWEN2,
    TOWERS,
    DecoderFamily,
    LeftOut,
    TowerFamily,
)
from acestep_gguf.convert.checkpoint.rope_parameters import (
    ContextLength,
    Positive,
    RopeParameters,
    rope_parameters,
)
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

# Bounds far above every known model: they keep sizes computed from a hostile config harmless.
Dim = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=1024)]
VocabSize = Annotated[int, msgspec.Meta(ge=1, le=2**22)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**22)]
DownsampleRatio = Annotated[float, msgspec.Meta(ge=2**-8, le=1)]
ScaleFactor = Annotated[int, msgspec.Meta(ge=1, le=2**8)]

MAX_LATENTS: Final = 2**12
# As llama.cpp's own, a signed 32-bit number.
MAX_CONTEXT_LENGTH: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """CLIPVisionConfig, and by its family's defaults that of others."""

    model_type: str = CLIP.model_type
    hidden_size: Dim = 768
    intermediate_size: Dim = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Dim = 12
    num_channels: int = 3
    image_size: Dim = 224
    patch_size: Dim = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    attention_bias: bool = True
    use_qk_norm: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    rope_theta: Positive = 10_000.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size of the tower is not a multiple of num_attention_heads")
        if self.family.row_end is not None and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError("heads of the tower do not have equal parts for rows and for columns")
        if self.num_channels != 3:
            raise ValueError("the tower does not take RGB pictures")
        if not 1 <= self.patches_per_side <= 1024:
            raise ValueError(
                f"image_size {self.image_size} and patch_size {self.patch_size} do not go together"
            )

    @property
    def family(self) -> TowerFamily:
        return TOWERS[self.model_type]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Ends of the names of tensors that this tower does not have."""
        return _left_out(self, self.family.left_out)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Qwen2Config, and by its family's defaults that of others."""

    model_type: str = QWEN2.model_type
    vocab_size: VocabSize = 151936
    hidden_size: Dim = 4096
    intermediate_size: Dim = 22016
    num_hidden_layers: Layers = 32
    num_attention_heads: Dim = 32
    num_key_value_heads: Dim | None = 32
    head_dim: Dim | None = None
    hidden_act: str = "silu"
    max_position_embeddings: ContextLength = 32768
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is not a multiple of num_attention_heads")
        if self.num_attention_heads % self.n_key_value_heads:
            raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
        if self.head_size % 2:
            raise ValueError(f"the heads have {self.head_size} rows, an odd number")
        if self.window is not None and self.window < 1:
            raise ValueError(f"sliding_window is {self.window}")
        if self.context_length > MAX_CONTEXT_LENGTH:
            raise ValueError(f"the rope factor stretches the context to {self.context_length} tokens")

    @property
    def family(self) -> DecoderFamily:
        return DECODERS[self.model_type]

    @property
    def head_size(self) -> int:
        """Rows of the query projection that belong to one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.head_size * self.num_attention_heads

    @property
    def n_key_value_heads(self) -> int:
        """Key and value heads; null means as many as attention heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def key_value_size(self) -> int:
        """Rows of the key and the value projection."""
        return self.head_size * self.n_key_value_heads

    @property
    def original_context_length(self) -> int:
        """Tokens that the model was trained for before YaRN stretched it."""
        return self.rope_parameters.original_max_position_embeddings or self.max_position_embeddings

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for: with YaRN, the original context times the factor.

        No more than the window: llama.cpp's Llama has none, and both are the same within it only.
        """
        rope, length = self.rope_parameters, self.max_position_embeddings
        if rope.rope_type == "yarn":
            length = max(length, int(self.original_context_length * (rope.factor or 1.0)))
        return length if self.window is None else min(length, self.window)

    @property
    def window(self) -> int | None:
        """Tokens that every layer sees at most, itself among them; None for all."""
        return self.sliding_window if self.family.has_window else None

    @property
    def has_sliding_window(self) -> bool:
        """Whether only some of the layers have a window."""
        if not self.use_sliding_window or self.sliding_window is None:
            return False
        if self.layer_types is not None:
            return "sliding_attention" in self.layer_types
        return self.max_window_layers < self.num_hidden_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """config.json of a decoder alone: without a vision tower, it has no image token either."""

    text_config: TextConfig
    image_token_index: TokenId | None = None
    tie_word_embeddings: bool = False

    @property
    def is_tied(self) -> bool:
        """Whether the embeddings are the output matrix, too."""
        return self.tie_word_embeddings or self.text_config.tie_word_embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceiverConfig:
    """Idefics2PerceiverConfig: latents that attend to patches."""

    hidden_act: str = "silu"
    hidden_size: Dim = 4096
    rms_norm_eps: Positive = 1e-6
    resampler_n_latents: Dim = 64
    resampler_depth: Layers = 3
    resampler_n_heads: Dim = 16
    resampler_head_dim: Dim = 96
    num_key_value_heads: Dim = 4

    def __post_init__(self) -> None:
        if self.resampler_n_heads % self.num_key_value_heads:
            raise ValueError("resampler_n_heads is not a multiple of num_key_value_heads")
        if self.resampler_n_latents > MAX_LATENTS:
            raise ValueError(f"resampler_n_latents is {self.resampler_n_latents}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLanguageConfig(ModelConfig):
    """LlavaConfig, and by its family's defaults that of others.

    ``vision_feature_layer`` counts the embeddings as layer 0, as ``hidden_states`` does.
    """

    model_type: str = LLAVA.model_type
    vision_config: VisionConfig
    image_token_index: TokenId = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    vision_feature_layer: int | list[int] = -2
    multimodal_projector_bias: bool = True
    image_grid_pinpoints: list[tuple[Dim, Dim]] | None = None
    vision_aspect_ratio: str | None = None
    downsample_ratio: DownsampleRatio = 1.0
    scale_factor: ScaleFactor | None = None
    force_image_size: Dim | None = None
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    perceiver_config: PerceiverConfig | None = None

    def __post_init__(self) -> None:
        n_states = self.vision_config.num_hidden_layers + 1
        if not self.feature_layers or not all(0 <= layer < n_states for layer in self.feature_layers):
            raise ValueError(
                f"vision_feature_layer {self.vision_feature_layer} is not among the tower's layers"
            )
        if self.image_token_index >= self.text_config.vocab_size:
            raise ValueError(f"the image token {self.image_token_index} is not in the vocabulary")
        if self.vision_config.family.row_end and self.vision_feature_select_strategy != "full":
            raise ValueError("vision_feature_select_strategy of a picture of any size is not 'full'")
        factor = self.shuffle_factor
        is_whole = self.scale_factor is not None or factor * self.downsample_ratio == 1
        if not is_whole or self.vision_config.patches_per_side % factor:
            name, value = ("downsample_ratio", self.downsample_ratio)
            if self.scale_factor is not None:
                name, value = ("scale_factor", self.scale_factor)
            raise ValueError(f"{name} {value} does not fit the tower's patches")

    @property
    def family(self) -> ArchitectureFamily:
        return ARCHITECTURES[self.model_type]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Ends of the names of tensors that there are not beside the tower and the decoder."""
        return _left_out(self, self.family.left_out)

    @property
    def picture_marks(self) -> tuple[str | None, str | None]:
        """Tokens that stand before and behind each picture."""
        return self.family.image_begin, self.family.image_end or self.vision_config.family.image_end

    @property
    def shuffle_factor(self) -> int:
        """Patches along each side of the square of patches whose features become one token."""
        return self.scale_factor or max(1, round(1 / self.downsample_ratio))

    @property
    def resampler_eps(self) -> float:
        """Of the resampler's norms: the decoder's where perceiver_config is not of its size, as it says."""
        perceiver, text = self.perceiver_config, self.text_config
        if perceiver is None or perceiver.hidden_size != text.hidden_size:
            return text.rms_norm_eps
        return perceiver.rms_norm_eps

    @property
    def feature_size(self) -> int:
        """Features that the projector takes of a token."""
        return self.vision_config.hidden_size * len(self.feature_layers) * self.shuffle_factor**2

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers whose output the projector sees, counted from the embeddings (0)."""
        layers = self.vision_feature_layer
        n_states = self.vision_config.num_hidden_layers + 1
        return tuple(
            layer + n_states if layer < 0 else layer
            for layer in (layers if isinstance(layers, list) else [layers])
        )

    def n_image_tokens(self, image_size: int) -> int:
        """Tokens of a crop: latents, or patches and CLS, without the first of them under "default"."""
        if self.perceiver_config is not None:
            return self.perceiver_config.resampler_n_latents
        n_patches = (image_size // self.vision_config.patch_size // self.shuffle_factor) ** 2
        is_cut = self.vision_feature_select_strategy == "default"
        return n_patches + self.vision_config.family.has_class_token - is_cut


C = TypeVar("C", bound=ModelConfig)


def parse_config(raw: dict[str, Any], path: Path) -> VisionLanguageConfig:
    """Parse config.json of a supported architecture with a vision tower.

    Raises:
        CheckpointError: a value is missing, of a wrong type or contradicts another.
        UnsupportedModelError: the values ask for something that llama.cpp or the graph does not do.
    """
    family = ARCHITECTURES[raw["model_type"]]
    raw = {**family.defaults, **_renamed(raw, family.keys)}
    _check_required(raw, family.required, path)
    vision = {"model_type": family.tower.model_type, **(raw.get("vision_config") or family.vision_config)}
    tower = family.towers[vision["model_type"]]
    vision = {**tower.defaults, **_renamed(vision, tower.keys), "model_type": tower.model_type}
    _check_required(vision, tower.required, path)
    if tower.row_end is not None:
        vision["rope_theta"] = _axial_rope_theta(vision, path)
    vision |= {key: _side(vision[key]) for key in ("image_size", "patch_size") if key in vision}
    raw["perceiver_config"] = (raw.get("perceiver_config") or {}) if family.has_resampler else None
    text = _text_config({"model_type": family.decoder.model_type, **(raw.get("text_config") or {})}, path)
    return _checked({**raw, "vision_config": vision, "text_config": text}, VisionLanguageConfig, path)


def _axial_rope_theta(vision: Mapping[str, Any], path: Path) -> float:
    rope = RopeParameters(**rope_parameters(vision, path))
    if rope.rope_type not in ("default", "axial"):
        raise UnsupportedModelError(f"{path}: rope type {rope.rope_type!r} of a tower is not supported.")
    return rope.rope_theta


def _renamed(raw: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The same under the names of VisionLanguageConfig, which go first where both are there."""
    return {keys[key]: value for key, value in raw.items() if key in keys} | {
        key: value for key, value in raw.items() if key not in keys
    }


def _check_required(raw: Mapping[str, Any], required: Mapping[str, Any], path: Path) -> None:
    for key, value in required.items():
        if raw.get(key, value) != value:
            raise UnsupportedModelError(f"{path}: {key} {raw[key]!r} is not supported, only {value!r} is.")


def _side(size: Any) -> Any:
    """The side of a square, which may be written as height and width."""
    match size:
        case [height, width] if height == width:
            return height
    return size


def _left_out(config: object, left_out: LeftOut) -> tuple[str, ...]:
    found = (names for (key, value), names in left_out.items() if getattr(config, key) == value)
    return tuple(name for names in found for name in names)


def parse_decoder_config(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Parse config.json of a supported decoder without a vision tower. Raises the same."""
    return _checked({"text_config": _text_config(raw, path)}, ModelConfig, path)


def _text_config(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {**DECODERS[raw["model_type"]].defaults, **raw, "rope_parameters": rope_parameters(raw, path)}


def _checked(raw: dict[str, Any], kind: type[C], path: Path) -> C:
    try:
        config = msgspec.convert(raw, type=kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} is damaged ({error}): get an undamaged checkpoint.") from error
    _check_runnable(config.text_config, path)
    return config


def _check_runnable(text: TextConfig, path: Path) -> None:
    """Refuse what llama.cpp's decoders of these families do not compute."""
    rope = text.rope_parameters
    known = ("default", "dynamic", "linear", "yarn", *(("llama3",) if text.family.has_rope_factors else ()))
    if rope.rope_type not in known:
        raise UnsupportedModelError(f"{path}: rope type {rope.rope_type!r} is not among {', '.join(known)}.")
    if rope.rope_type != "default" and rope.factor is None:
        raise CheckpointError(
            f"{path}: rope type {rope.rope_type!r} has no factor: get an undamaged checkpoint."
        )
    if rope.rope_type == "llama3" and not (rope.low_freq_factor or 0) < (rope.high_freq_factor or 0):
        raise CheckpointError(
            f"{path}: rope type 'llama3' has no low_freq_factor below its high_freq_factor: "
            "get an undamaged checkpoint."
        )
    if rope.rope_type == "yarn" and (rope.beta_fast not in (None, 32) or rope.beta_slow not in (None, 1)):
        raise UnsupportedModelError(f"{path}: llama.cpp has YaRN with beta_fast 32 and beta_slow 1 only.")
    if rope.rope_type == "yarn" and not rope.truncate:
        raise UnsupportedModelError(f"{path}: llama.cpp has YaRN with truncated correction dimensions only.")
    if text.hidden_act != "silu":
        raise UnsupportedModelError(f"{path}: hidden_act {text.hidden_act!r} is not a decoder's silu.")
    if text.query_size != text.hidden_size and not text.family.has_head_dim:
        raise UnsupportedModelError(f"{path}: a head_dim other than hidden_size / num_attention_heads.")
    if text.has_sliding_window:
        raise UnsupportedModelError(
            f"{path}: llama.cpp's Qwen2 and Qwen3 have no sliding window: set use_sliding_window false."
        )
    # Qwen2Config has no such options.
    if text.family is not QWEN2 and (text.attention_bias or text.mlp_bias):
        raise UnsupportedModelError(f"{path}: decoders with attention_bias or mlp_bias are not supported.")
