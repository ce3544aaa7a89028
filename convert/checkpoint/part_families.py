"""The kinds of decoders and of towers that are supported: each is one entry of a table.

A new one is a new entry; what it needs beyond these fields is a change of code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from acestep_gguf.convert.checkpoint import tensor_tables
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
