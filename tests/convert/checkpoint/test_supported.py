import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.supported import check_architecture
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

PUBLISHED = Path(__file__).parents[1] / "published_configs"
VISION = {"model_type": "clip_vision_model"}
TEXT = {"model_type": "qwen2"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "acestep"}, "makes music from text"),
        ({"model_type": "x", "architectures": ["AceStepConditionGenerationModel"]}, "makes music from text"),
        ({"_class_name": "ACEStepTransformer2DModel"}, "makes music from text"),
        ({"model_type": "qwen2_vl"}, "a tower for pictures of any size and M-RoPE"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "M-RoPE"),
        ({"model_type": "qwen3_moe"}, "is a qwen3_moe checkpoint"),
        ({"model_type": "llava_next_video", "vision_config": {}}, "is a llava_next_video checkpoint"),
        ({"model_type": "llava_next", "text_config": {"model_type": "phi3"}}, "text_config of type phi3"),
        ({"model_type": "llava_onevision", "vision_config": VISION}, "supported are siglip_vision_model"),
        (
            {"model_type": "llava", "vision_config": VISION, "text_config": {"model_type": "mixtral"}},
            "mixtral",
        ),
        ({"model_type": "llava", "vision_config": {"model_type": "dinov2"}, "text_config": TEXT}, "dinov2"),
        ({"model_type": "llava", "vision_config": {"model_type": ["clip"]}}, "vision_config of type"),
    ],
)
def test_other_models_get_a_sentence(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        check_architecture(config, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "llava-1.5-7b-hf.config.json",
        "llava-interleave-qwen-0.5b-hf.config.json",
        "llava-interleave-qwen-7b-hf.config.json",
        "qwen2.5-32b-instruct.config.json",
        "qwen3-4b.config.json",
        "mistral-7b-v0.1.config.json",
    ],
)
def test_published_checkpoints_pass(tmp_path: Path, name: str) -> None:
    check_architecture(json.loads((PUBLISHED / name).read_text()), tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": 3},
        {"model_type": "llava", "vision_config": []},
    ],
)
def test_config_that_does_not_say_what_it_is_is_damaged(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        check_architecture(config, tmp_path)


def test_supported_architecture_passes_beside_anything(tmp_path: Path) -> None:
    (tmp_path / "acestep-bundle").mkdir()
    check_architecture({"model_type": "llava", "vision_config": VISION, "text_config": TEXT}, tmp_path)


def test_folder_of_the_published_music_model_gets_a_sentence(tmp_path: Path) -> None:
    for name in ("acestep-v15-turbo", "acestep-5Hz-lm-1.7B", "vae"):
        (tmp_path / name).mkdir()
    with pytest.raises(UnsupportedModelError, match="makes music from text"):
        CheckpointFolder(tmp_path)
    with pytest.raises(UnsupportedModelError, match="makes music from text"):
        check_architecture({}, tmp_path)


@pytest.mark.parametrize("name", ["acestep_gguf", "acestep-bundle", "ace-step"])
def test_folders_with_like_names_are_no_music_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        CheckpointFolder(tmp_path)


def test_beside_a_config_that_says_what_it_is_folders_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "acestep-v15-turbo").mkdir()
    with pytest.raises(UnsupportedModelError, match="is a gemma3 checkpoint"):
        check_architecture({"model_type": "gemma3"}, tmp_path)


def test_diffusion_pipeline_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="is a diffusion pipeline"):
        CheckpointFolder(tmp_path)
