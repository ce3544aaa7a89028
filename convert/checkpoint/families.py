"""The kinds of models that are supported, and the decoders and towers in them: each is one entry of a table.

A new family is a new entry; what it needs beyond these fields is a change of code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from acestep_gguf.convert.checkpoint import tensor_tables
from acestep_gguf.convert.checkpoint.chat_templates import INTERNVL2_5
from acestep_gguf.convert.checkpoint.tensor_tables import Part

# (key, value) of a config -> ends of the names of tensors that a model then does not have.
LeftOut = Mapping[tuple[str, Any], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFamily:
    """A kind of decoder.

    ``defaults`` are those of transformers' config class where they are not TextConfig's. llama.cpp rotates
    neighbouring rows of the queries and keys of its ``arch`` if ``pairs_neighbours``, where transformers
    always rotates the first half of a head with the second. It takes heads whose rows are not just the
    hidden size divided among them if ``has_head_dim``, and divisors of the frequencies of rotation, one for
    each, if ``has_rope_factors``. With ``has_window``, all layers see no further than ``sliding_window``
    tokens, if there is one.
    """

    model_type: str
    architecture: str
    arch: str
    defaults: Mapping[str, Any]
    tensors: Part
    pairs_neighbours: bool = False
    has_head_dim: bool = False
    has_rope_factors: bool = False
    has_window: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerFamily:
    """A kind of vision tower.

    ``defaults`` are those of transformers' config class where they are not VisionConfig's. Which tensors
    there are decides which steps the graph has: see tower/graph.py. With ``has_fractional_positions``,
    pictures of another size take rows of the position table; else it is interpolated. With ``has_any_size``,
    each picture takes those of its own size. ``row_end`` and ``image_end`` are tokens that end the rows and
    the whole of a picture of any size that is rotated by its rows and columns. For ``keys``, ``required``,
    ``left_out``, ``image_token`` and ``llama_cpp_projector``, see ArchitectureFamily, whose these go before.
    """

    model_type: str
    defaults: Mapping[str, Any]
    tensors: Part
    has_class_token: bool
    has_fractional_positions: bool = False
    has_any_size: bool = False
    row_end: str | None = None
    image_end: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=dict)
    image_token: str | None = None
    llama_cpp_projector: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureFamily:
    """How a tower and a decoder are one model: a ``model_type`` at the top of config.json.

    ``defaults`` are those of transformers' config class where they are not VisionLanguageConfig's, and
    ``tower``, ``vision_config`` and ``decoder`` what it has where config.json says nothing of a part.
    ``towers`` and ``decoders`` are by the ``model_type`` that config.json has for them.
    ``parts`` are the tensors of neither, the projector's first. ``image_processors`` are the kinds that
    prepare its pictures, the one first that is meant where a folder does not say. ``image_begin`` and
    ``image_end`` are tokens that its processor writes around each picture, ``image_around`` one that two
    pictures share. With ``has_resampler``, its ``perceiver_config`` tells how patches become tokens.

    ``keys`` are names in its config.json that are others in VisionLanguageConfig, and ``required`` the values
    of keys that are the only ones supported. ``left_out`` are the ends of names of tensors that a model with
    a value of a key does not have. ``image_token`` stands for a picture where config.json has no id of it;
    ``image_processor`` and ``chat_template`` are those of its own code, whatever the files in a folder say.
    ``llama_cpp_projector`` is what llama.cpp calls the projector in an mmproj file, if it computes the same.
    """

    model_type: str
    name: str
    architecture: str
    defaults: Mapping[str, Any]
    tower: TowerFamily
    vision_config: Mapping[str, Any]
    decoder: DecoderFamily
    towers: Mapping[str, TowerFamily]
    decoders: Mapping[str, DecoderFamily]
    parts: tuple[Part, ...]
    image_processors: tuple[str, ...]
    image_begin: str | None = None
    image_end: str | None = None
    image_around: str | None = None
    has_resampler: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=dict)
    image_token: str | None = None
    image_processor: Mapping[str, Any] | None = None
    chat_template: str | None = None
    llama_cpp_projector: str | None = None


QWEN2: Final = DecoderFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    arch="qwen2",
    defaults={},
    tensors=tensor_tables.QWEN2,
)
QWEN3: Final = DecoderFamily(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    arch="qwen3",
    defaults={"head_dim": 128},
    tensors=tensor_tables.QWEN3,
    has_head_dim=True,
)
LLAMA: Final = DecoderFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    arch="llama",
    defaults={
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    tensors=tensor_tables.LLAMA,
    pairs_neighbours=True,
    has_head_dim=True,
    has_rope_factors=True,
)
MISTRAL: Final = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    has_window=True,
)
CLIP: Final = TowerFamily(
    model_type="clip_vision_model",
    defaults={},
    tensors=tensor_tables.CLIP,
    has_class_token=True,
)
SIGLIP: Final = TowerFamily(
    model_type="siglip_vision_model",
    defaults={"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    tensors=tensor_tables.SIGLIP,
    has_class_token=False,
)
INTERN_VIT: Final = TowerFamily(
    model_type="internvl_vision",
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_bias": False,
    },
    tensors=tensor_tables.INTERN_VIT,
    has_class_token=True,
    required={"use_absolute_position_embeddings": True, "use_mean_pooling": True},
    left_out={
        ("attention_bias", False): (".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_qkv.bias"),
        ("use_qk_norm", False): (".attn_q_norm.weight", ".attn_k_norm.weight"),
        ("norm_type", "rms_norm"): (".ln1.bias", ".ln2.bias"),
    },
)
INTERN_VIT_6B: Final = replace(
    INTERN_VIT,
    model_type="intern_vit_6b",
    defaults={
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 48,
        "num_attention_heads": 25,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_bias": False,
        "use_qk_norm": True,
        "norm_type": "rms_norm",
    },
    tensors=tensor_tables.INTERN_VIT_6B,
    keys={"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"},
    required={},
)

IDEFICS3_TOWER: Final = TowerFamily(
    model_type="idefics3_vision",
    defaults={
        "hidden_size": 1152,
        "num_attention_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    tensors=tensor_tables.IDEFICS3_TOWER,
    has_class_token=False,
    has_fractional_positions=True,
)
IDEFICS2_TOWER: Final = replace(
    IDEFICS3_TOWER,
    model_type="idefics2_vision",
    defaults={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    has_any_size=True,
)
PIXTRAL: Final = TowerFamily(
    model_type="pixtral",
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 1024,
        "patch_size": 16,
        "hidden_act": "gelu",
    },
    tensors=tensor_tables.PIXTRAL,
    has_class_token=False,
    row_end="[IMG_BREAK]",
    image_end="[IMG_END]",
    # A constant in transformers' code.
    required={"layer_norm_eps": 1e-5},
    image_token="[IMG]",  # noqa: S106 (no password)
    llama_cpp_projector="pixtral",
)

# By model_type of text_config and of vision_config.
DECODERS: Final = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA, MISTRAL)}
TOWERS: Final = {
    family.model_type: family
    for family in (CLIP, SIGLIP, INTERN_VIT, INTERN_VIT_6B, IDEFICS2_TOWER, IDEFICS3_TOWER, PIXTRAL)
}

LLAVA: Final = ArchitectureFamily(
    model_type="llava",
    name="LLaVA",
    architecture="LlavaForConditionalGeneration",
    defaults={},
    tower=CLIP,
    vision_config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    decoder=LLAMA,
    towers={family.model_type: family for family in (CLIP, SIGLIP, PIXTRAL)},
    decoders=DECODERS,
    parts=(tensor_tables.PROJECTOR,),
    keys={"image_token_id": "image_token_index"},
    left_out={("multimodal_projector_bias", False): ("mm.1.bias", "mm.2.bias")},
    image_processors=(
        "CLIPImageProcessor",
        "CLIPFeatureExtractor",
        "LlavaImageProcessor",
        "SiglipImageProcessor",
        "PixtralImageProcessor",
    ),
    llama_cpp_projector="mlp",
)
LLAVA_NEXT: Final = replace(
    LLAVA,
    model_type="llava_next",
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    defaults={
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    towers={family.model_type: family for family in (CLIP, SIGLIP)},
    parts=(tensor_tables.PROJECTOR, tensor_tables.IMAGE_NEWLINE),
    image_processors=("LlavaNextImageProcessor",),
    llama_cpp_projector=None,
)
LLAVA_ONEVISION: Final = replace(
    LLAVA_NEXT,
    model_type="llava_onevision",
    name="LLaVA-OneVision",
    architecture="LlavaOnevisionForConditionalGeneration",
    defaults={
        "image_token_index": 151646,
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "image_grid_pinpoints": [
            [384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)
        ],
        "vision_aspect_ratio": "anyres_max_9",
    },
    tower=SIGLIP,
    vision_config={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    decoder=QWEN2,
    towers={SIGLIP.model_type: SIGLIP},
    decoders={QWEN2.model_type: QWEN2},
    image_processors=("LlavaOnevisionImageProcessor",),
)
INTERNVL: Final = ArchitectureFamily(
    model_type="internvl",
    name="InternVL",
    architecture="InternVLForConditionalGeneration",
    defaults={
        "image_token_index": 151667,
        "downsample_ratio": 0.5,
        "vision_feature_layer": -1,
        "tie_word_embeddings": True,
    },
    tower=INTERN_VIT,
    vision_config={},
    decoder=QWEN2,
    towers={INTERN_VIT.model_type: INTERN_VIT},
    decoders={family.model_type: family for family in (QWEN2, QWEN3, LLAMA)},
    parts=(tensor_tables.INTERNVL_PROJECTOR,),
    image_processors=("GotOcr2ImageProcessor",),
    image_begin="<img>",
    image_end="</img>",
    keys={"image_token_id": "image_token_index"},
    required={"vision_feature_select_strategy": "default"},
    image_token="<IMG_CONTEXT>",  # noqa: S106 (no password)
    llama_cpp_projector="internvl",
)
# The same in the layout of InternVL's own code.
INTERNVL_CHAT: Final = replace(
    INTERNVL,
    model_type="internvl_chat",
    name="InternVLChat",
    architecture="InternVLChatModel",
    defaults={
        "downsample_ratio": 0.5,
        "vision_feature_layer": -1,
        "max_dynamic_patch": 6,
        "ps_version": "v1",
        "template": None,
        "dynamic_image_size": False,
        "use_thumbnail": False,
    },
    tower=INTERN_VIT_6B,
    towers={INTERN_VIT_6B.model_type: INTERN_VIT_6B},
    parts=(tensor_tables.INTERNVL_CHAT_PROJECTOR,),
    keys={
        **INTERNVL.keys,
        "llm_config": "text_config",
        "select_layer": "vision_feature_layer",
    },
    required={
        "ps_version": "v2",
        "template": "internvl2_5",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "pad2square": False,
    },
    image_processor={
        "image_processor_type": "GotOcr2ImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    chat_template=INTERNVL2_5,
)

IDEFICS2: Final = ArchitectureFamily(
    model_type="idefics2",
    name="Idefics2",
    architecture="Idefics2ForConditionalGeneration",
    defaults={
        "image_token_index": 32001,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    tower=IDEFICS2_TOWER,
    vision_config={},
    decoder=MISTRAL,
    # transformers does not look at it.
    towers=dict.fromkeys((IDEFICS2_TOWER.model_type, "idefics2"), IDEFICS2_TOWER),
    decoders={MISTRAL.model_type: MISTRAL},
    parts=(tensor_tables.IDEFICS2_PROJECTION, tensor_tables.IDEFICS2_RESAMPLER),
    image_processors=("Idefics2ImageProcessor",),
    image_around="<fake_token_around_image>",
    has_resampler=True,
    keys={"image_token_id": "image_token_index"},
)
IDEFICS3: Final = ArchitectureFamily(
    model_type="idefics3",
    name="Idefics3",
    architecture="Idefics3ForConditionalGeneration",
    defaults={
        "image_token_index": 128257,
        "scale_factor": 2,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    tower=IDEFICS3_TOWER,
    vision_config={},
    decoder=LLAMA,
    # transformers does not look at it.
    towers=dict.fromkeys(
        (IDEFICS3_TOWER.model_type, "smolvlm_vision", "idefics3", "smolvlm"), IDEFICS3_TOWER
    ),
    decoders={LLAMA.model_type: LLAMA},
    parts=(tensor_tables.IDEFICS3_CONNECTOR,),
    image_processors=("Idefics3ImageProcessor", "SmolVLMImageProcessor"),
    keys={"image_token_id": "image_token_index"},
    llama_cpp_projector="idefics3",
)
# The same under SmolVLM2's names.
SMOLVLM: Final = replace(
    IDEFICS3,
    model_type="smolvlm",
    name="SmolVLM",
    architecture="SmolVLMForConditionalGeneration",
    image_processors=("SmolVLMImageProcessor", "Idefics3ImageProcessor"),
)

# By config.json's model_type.
ARCHITECTURES: Final = {
    family.model_type: family
    for family in (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, INTERNVL, INTERNVL_CHAT, IDEFICS2, IDEFICS3, SMOLVLM)
}
