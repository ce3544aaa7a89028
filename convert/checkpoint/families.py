"""The kinds of models that are supported, and the decoders and towers in them: each is one entry of a table.

A new family is a new entry; what it needs beyond these fields is a change of code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from acestep_gguf.convert.checkpoint import tensor_tables
from acestep_gguf.convert.checkpoint.tensor_tables import Part


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
    there are decides which steps the graph has: see tower/graph.py.
    """

    model_type: str
    defaults: Mapping[str, Any]
    tensors: Part
    has_class_token: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureFamily:
    """How a tower and a decoder are one model: a ``model_type`` at the top of config.json.

    ``defaults`` are those of transformers' config class where they are not VisionLanguageConfig's, and
    ``tower``, ``vision_config`` and ``decoder`` what it has where config.json says nothing of a part.
    ``parts`` are the tensors of neither, the projector's first. ``image_processors`` are the kinds that
    prepare its pictures, the one first that is meant where a folder does not say. ``image_begin`` and
    ``image_end`` are tokens that its processor writes around each picture.
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

# By model_type of text_config and of vision_config.
DECODERS: Final = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA, MISTRAL)}
TOWERS: Final = {family.model_type: family for family in (CLIP, SIGLIP)}

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
    towers=TOWERS,
    decoders=DECODERS,
    parts=(tensor_tables.PROJECTOR,),
    image_processors=(
        "CLIPImageProcessor",
        "CLIPFeatureExtractor",
        "LlavaImageProcessor",
        "SiglipImageProcessor",
    ),
)
LLAVA_NEXT: Final = replace(
    LLAVA,
    model_type="llava_next",
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    defaults={
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    parts=(tensor_tables.PROJECTOR, tensor_tables.IMAGE_NEWLINE),
    image_processors=("LlavaNextImageProcessor",),
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

# By config.json's model_type.
ARCHITECTURES: Final = {family.model_type: family for family in (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION)}
