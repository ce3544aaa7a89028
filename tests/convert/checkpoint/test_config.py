import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.convert.checkpoint.config import (
    TextConfig,
    VisionConfig,
    VisionLanguageConfig,
    parse_config,
)
from acestep_gguf.convert.checkpoint.part_families import LLAMA, MISTRAL, QWEN2, QWEN3, SIGLIP
from acestep_gguf.convert.checkpoint.rope_parameters import RopeParameters
from acestep_gguf.convert.checkpoint.supported import check_architecture
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.tiny_checkpoints import TinyCheckpoint

PATH = Path("config.json")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = Path(__file__).parents[1] / "published_configs"


def published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((PUBLISHED / name).read_text())
    return config


def parse(
    text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> VisionLanguageConfig:
    raw = {
        "model_type": "llava",
        "text_config": {"model_type": "qwen2", **(text or {})},
        "vision_config": vision or {"patch_size": 14},
        **top,
    }
    return parse_config(raw, PATH)


def test_described_model() -> None:
    text = published("qwen2.5-32b-instruct.config.json")
    text["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    vision = published("clip-vit-h-14.vision_config.json") | {"image_size": 448}
    config = parse(text, vision, image_token_index=151655)
    assert config.text_config.hidden_size == 5120
    assert config.text_config.key_value_size == 1024
    assert config.text_config.rope_parameters == RopeParameters(
        rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768
    )
    assert config.feature_layers == (31,)
    assert config.n_image_tokens(448) == 1024
    assert not config.is_tied
    assert not config.text_config.has_sliding_window


def test_omitted_keys_mean_the_defaults_of_the_config_classes() -> None:
    assert parse() == VisionLanguageConfig(
        vision_config=VisionConfig(patch_size=14), text_config=TextConfig()
    )
    assert parse().text_config.rope_parameters.rope_theta == 10_000
    bare = parse_config({"model_type": "llava", "image_token_index": 0}, PATH)
    assert bare.vision_config.image_size == 336
    assert bare.vision_config.num_hidden_layers == 24
    assert bare.text_config.family is LLAMA
    assert bare.text_config.vocab_size == 32000
    assert (bare.text_config.bos_token_id, bare.text_config.eos_token_id) == (1, 2)


def test_llava_1_5_as_published() -> None:
    config = parse_config(published("llava-1.5-7b-hf.config.json"), PATH)
    text = config.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.n_key_value_heads, text.key_value_size) == (32, 32, 4096)
    assert (text.vocab_size, text.max_position_embeddings, text.rms_norm_eps) == (32064, 4096, 1e-5)
    assert config.vision_config.hidden_act == "quick_gelu"
    assert (config.image_token_index, config.feature_layers) == (32000, (23,))
    assert config.n_image_tokens(336) == 576


def test_qwen3_4b_as_published() -> None:
    text = parse(published("qwen3-4b.config.json"), image_token_index=0).text_config
    assert (text.family, text.hidden_size, text.head_size, text.query_size) == (QWEN3, 2560, 128, 4096)
    assert (text.key_value_size, text.context_length, text.has_sliding_window) == (1024, 40960, False)


def test_mistral_7b_v0_1_as_published() -> None:
    text = parse(published("mistral-7b-v0.1.config.json"), image_token_index=0).text_config
    assert (text.family, text.head_size, text.key_value_size) == (MISTRAL, 128, 1024)
    assert (text.max_position_embeddings, text.context_length) == (32768, 4096)


@pytest.mark.parametrize(
    ("text", "context_length"),
    [
        ({}, 4096),  # MistralConfig's default
        ({"sliding_window": None}, 131072),
        ({"sliding_window": None, "max_position_embeddings": 32768}, 32768),
        ({"sliding_window": 1024, "max_position_embeddings": 512}, 512),
        ({"sliding_window": 1024, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 1024),
    ],
)
def test_a_mistral_has_no_more_context_than_its_window(text: dict[str, Any], context_length: int) -> None:
    config = parse({"model_type": "mistral", **text}, image_token_index=0).text_config
    assert config.context_length == context_length
    assert config.num_key_value_heads == 8
    assert not config.has_sliding_window


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_the_windows_of_others_are_not_mistrals(model_type: str) -> None:
    text = {"model_type": model_type, "sliding_window": 64, "max_position_embeddings": 512}
    assert parse(text, image_token_index=0).text_config.context_length == 512


@pytest.mark.parametrize(
    ("text", "head_size"),
    [
        ({"model_type": "qwen3"}, 128),
        ({"model_type": "qwen3", "hidden_size": 1000, "num_attention_heads": 96}, 128),
        ({"model_type": "qwen3", "head_dim": 64}, 64),
        ({"model_type": "llama", "head_dim": 160}, 160),
        ({"model_type": "llama", "num_attention_heads": 64}, 64),
    ],
)
def test_heads_have_a_size_of_their_own(text: dict[str, Any], head_size: int) -> None:
    config = parse(text, image_token_index=0).text_config
    assert config.head_size == head_size
    assert config.query_size == head_size * config.num_attention_heads


@pytest.mark.parametrize(("size", "hidden_size", "tied"), [("0.5b", 1024, True), ("7b", 4096, False)])
def test_llava_interleave_as_published(size: str, hidden_size: int, tied: bool) -> None:
    config = parse_config(published(f"llava-interleave-qwen-{size}-hf.config.json"), PATH)
    text, vision = config.text_config, config.vision_config
    assert (text.family, text.hidden_size, config.is_tied) == (QWEN2, hidden_size, tied)
    assert text.n_key_value_heads == text.num_attention_heads
    assert (vision.family, vision.hidden_act, vision.layer_norm_eps) == (SIGLIP, "gelu_pytorch_tanh", 1e-6)
    assert config.feature_layers == (26,)
    assert config.n_image_tokens(384) == 27**2  # SigLIP has no CLS


def test_the_strategy_default_drops_the_first_feature_of_any_tower() -> None:
    siglip = {"model_type": "siglip_vision_model"}
    for strategy, n_tokens in (("default", 14**2 - 1), ("full", 14**2)):
        config = parse(vision=siglip, vision_feature_select_strategy=strategy)
        assert config.vision_config.patch_size == 16
        assert config.n_image_tokens(224) == n_tokens


@pytest.mark.parametrize("options", [{}, {"yarn": True}, {"tied": True}, {"feature_layer": (-2, 0)}])
def test_both_versions_say_the_same(options: dict[str, Any]) -> None:
    configs = [
        parse_config(TinyCheckpoint(layout=layout, **options).config(), PATH) for layout in ("v4", "v5")
    ]
    assert configs[0].text_config.rope_parameters == configs[1].text_config.rope_parameters
    assert configs[0].vision_config == configs[1].vision_config
    assert configs[0].is_tied == configs[1].is_tied
    assert configs[0].feature_layers == configs[1].feature_layers
    assert configs[0].image_token_index == configs[1].image_token_index


def test_image_token_id_is_another_name_of_image_token_index() -> None:
    assert parse(image_token_id=7).image_token_index == 7
    assert parse(image_token_id=7, image_token_index=8).image_token_index == 8


@pytest.mark.parametrize(
    ("layer", "expected"), [(-2, (11,)), (-1, (12,)), (0, (0,)), (12, (12,)), ([-2, 3], (11, 3))]
)
def test_feature_layers_count_from_the_embeddings(layer: Any, expected: tuple[int, ...]) -> None:
    assert parse(vision_feature_layer=layer).feature_layers == expected


def test_yarn_attention_factor_is_transformers() -> None:
    plain = RopeParameters(rope_type="yarn", factor=4.0)
    assert plain.yarn_attention_factor() == pytest.approx(0.1 * math.log(4) + 1)
    assert RopeParameters(rope_type="yarn", factor=4.0, attention_factor=1.5).yarn_attention_factor() == 1.5
    mscale = RopeParameters(rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.707)
    expected = (0.1 * math.log(40) + 1) / (0.1 * 0.707 * math.log(40) + 1)
    assert mscale.yarn_attention_factor() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "llama3"),
        ({"model_type": "qwen3", "rope_scaling": LLAMA3_ROPE}, "llama3"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncated"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"head_dim": 64}, "head_dim"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True, "max_window_layers": 3}, "sliding window"),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 32}, "sliding window"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(text: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse(text, image_token_index=0)


def test_dynamic_rope_changes_nothing_within_the_context() -> None:
    config = parse({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096})
    assert config.text_config.context_length == 4096


def test_sliding_window_that_no_layer_uses_is_fine() -> None:
    config = parse({"use_sliding_window": True, "max_window_layers": 32, "num_hidden_layers": 32})
    assert not config.text_config.has_sliding_window
    assert not parse({"use_sliding_window": True, "sliding_window": None}).text_config.has_sliding_window


@pytest.mark.parametrize(
    "raw",
    [
        {"text_config": {"hidden_size": "large"}},
        {"text_config": {"hidden_size": 0}},
        {"text_config": {"hidden_size": 2**40}},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"text_config": {"num_attention_heads": 7}},
        {"text_config": {"head_dim": 127}},
        {"text_config": {"model_type": "mistral", "sliding_window": 0}},
        {"text_config": {"model_type": "mistral", "sliding_window": -1}},
        {"text_config": {"head_dim": 0}},
        {"text_config": {"num_key_value_heads": 5}},
        {"text_config": {"rope_scaling": {"type": "yarn"}}},
        {"text_config": {"rope_scaling": 4}},
        {"text_config": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}},
        {"text_config": {"rope_scaling": {**LLAMA3_ROPE, "factor": None}}},
        {"text_config": {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}},
        {"text_config": {"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": None}}},
        {"text_config": {"rope_theta": -1}},
        {"text_config": {"rope_scaling": {"type": "yarn", "factor": 1e9}}},
        {"text_config": {"rope_scaling": {"type": "linear", "factor": 0.5}}},
        {"text_config": {"rope_scaling": {"type": "yarn", "factor": 2**20}}},
        {"text_config": {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": -1}}},
        {"text_config": {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1e308}}},
        {"vision_config": {"patch_size": 14, "image_size": 7}},
        {"vision_config": {"patch_size": 14, "num_channels": 1}},
        {"vision_config": {"patch_size": 14, "image_size": [336, 448]}},
        {"vision_feature_layer": 14},
        {"vision_feature_layer": -14},
        {"vision_feature_layer": []},
        {"vision_feature_select_strategy": "some"},
        {"image_token_index": 10**6},
    ],
)
def test_values_that_contradict_each_other_are_an_error(raw: dict[str, Any]) -> None:
    sound = {
        "model_type": "llava",
        "text_config": {},
        "vision_config": {"patch_size": 14},
        "image_token_index": 0,
    }
    parse_config(sound, PATH)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        parse_config(sound | raw, PATH)


values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
)


@given(
    text=st.dictionaries(st.sampled_from([*TextConfig.__dataclass_fields__, "rope_scaling"]), values),
    vision=st.dictionaries(st.sampled_from([*VisionConfig.__dataclass_fields__]), values),
    top=st.dictionaries(st.sampled_from([*VisionLanguageConfig.__dataclass_fields__][2:]), values),
)
def test_any_config_is_parsed_or_refused(text: Any, vision: Any, top: Any) -> None:
    raw = {"model_type": "llava", "text_config": text, "vision_config": vision, **top}
    try:
        check_architecture(raw, PATH.parent)
        parse_config(raw, PATH)
    except (CheckpointError, UnsupportedModelError):
        return
