"""The kinds of models that are supported, each of a tower and a decoder: one entry of a table.

A new family is a new entry; what it needs beyond these fields is a change of code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from acestep_gguf.convert.checkpoint import tensor_tables
from acestep_gguf.convert.checkpoint.chat_templates import INTERNVL2_5
from acestep_gguf.convert.checkpoint.part_families import (
    CLIP,
    DECODERS,
    IDEFICS2_TOWER,
    IDEFICS3_TOWER,
    INTERN_VIT,
    INTERN_VIT_6B,
    LLAMA,
    MISTRAL,
    PIXTRAL,
    QWEN2,
    QWEN3,
    SIGLIP,
    DecoderFamily,
    LeftOut,
    TowerFamily,
)
from acestep_gguf.convert.checkpoint.tensor_tables import Part


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
