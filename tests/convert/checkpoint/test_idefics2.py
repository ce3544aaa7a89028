"""What IDEFICS-2's folders say; tests/parity compares them with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import Quarters, Size
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.errors import AceStepError, CheckpointError, UnsupportedModelError
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_idefics2 import AROUND, TinyIdefics2


def tiny(**options: Any) -> TinyIdefics2:
    return TinyIdefics2(**{"decoder": "mistral", **options})


def read(folder: Path, image_size: int | None = None) -> CheckpointModel:
    with open_model(folder, image_size) as model:
        return model


def changed(folder: Path, name: str, part: str | None = None, **changes: Any) -> Path:
    path = folder / name
    content = json.loads(path.read_text())
    (content if part is None else content[part]).update(changes)
    path.write_text(json.dumps(content))
    return folder


def config_of(folder: Path) -> VisionLanguageConfig:
    config = read(folder).config
    assert isinstance(config, VisionLanguageConfig)
    return config


@pytest.mark.parametrize("name", ["idefics2", "idefics2_vision", None])
def test_the_tower_is_the_same_whatever_it_is_called(tmp_path: Path, name: str | None) -> None:
    folder = tiny().write(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    for part in ("vision_config", "perceiver_config"):
        config[part].pop("model_type")
        config[part] |= {} if name is None else {"model_type": name}
    (folder / "config.json").write_text(json.dumps(config))
    assert read(folder).source.vision_model_type == "idefics2_vision"


def test_the_resamplers_norms_are_the_decoders_unless_they_are_of_its_size(tmp_path: Path) -> None:
    """As in transformers: another hidden_size, 4,096 by default, means that nobody wrote eps down."""
    of_decoder = config_of(tiny().write(tmp_path / "default")).resampler_eps
    assert of_decoder == 1e-6
    assert config_of(tiny(resampler_hidden_size=256).write(tmp_path / "own")).resampler_eps == 1e-2
    assert config_of(tiny(resampler_hidden_size=128).write(tmp_path / "other")).resampler_eps == of_decoder


def test_other_models_have_no_resampler_whatever_their_config_says(tmp_path: Path) -> None:
    folder = TinyCheckpoint().write(tmp_path / "c")
    image = read(folder).image
    assert read(changed(folder, "config.json", perceiver_config={"resampler_n_latents": 9})).image == image


def test_tokens_around_pictures_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    folder = tiny().write(tmp_path / "c")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] != AROUND
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = read(folder)
    assert model.prompt.image_around == AROUND
    assert model.image is not None
    assert isinstance(model.image.tiles, Quarters)
    assert model.prompt.control_tokens[AROUND] == model.image.tiles.between


def test_another_size_is_the_longest_side(tmp_path: Path) -> None:
    folder = tiny().write(tmp_path / "c")
    for image_size, shortest in ((70, 21), (14, 14)):
        image = read(folder, image_size).image
        assert image is not None
        assert (image.size, image.n_image_tokens) == (Size(height=image_size, width=image_size), 6)
        assert isinstance(image.tiles, Quarters)
        assert image.tiles.shortest_edge == shortest


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"do_resize": False}, "do not come out as"),
        ({"size": {"longest_edge": 56}}, "no shortest_edge"),
        ({"size": {"longest_edge": 56, "shortest_edge": 57}}, "57 to 56 pixels"),
        ({"size": {"height": 56, "width": 56}}, "no shortest_edge"),
        ({"image_processor_type": "Idefics3ImageProcessor"}, "supported for Idefics2 are"),
    ],
)
def test_other_image_processors_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    folder = changed(tiny().write(tmp_path / "c"), "preprocessor_config.json", **changes)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=problem):
        read(folder)


@pytest.mark.parametrize(
    ("file", "part", "changes", "problem"),
    [
        ("processor_config.json", None, {"image_seq_len": 64}, "image_seq_len 64"),
        ("config.json", "perceiver_config", {"resampler_n_latents": 2**13}, "resampler_n_latents is 8192"),
        ("config.json", "perceiver_config", {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ("config.json", "perceiver_config", {"resampler_depth": 3}, r"resampler\.layers\.2.*is missing"),
        ("config.json", "perceiver_config", {"hidden_act": "relu"}, "activation 'relu'"),
        ("config.json", "text_config", {"model_type": "llama"}, "supported are mistral"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, file: str, part: str | None, changes: dict[str, Any], problem: str
) -> None:
    folder = changed(tiny().write(tmp_path / "c"), file, part, **changes)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=problem):
        read(folder)


def test_readers_before_version_4_refuse_such_bundles(tmp_path: Path) -> None:
    bundle = convert_checkpoint(tiny().write(tmp_path / "c"), tmp_path / "b", ["Q8_0"], vision=["float32"])
    assert bundle.min_reader_version == 4
    raw = json.loads((tmp_path / "b/bundle.json").read_text())
    raw["image"]["tiles"]["between"] = 5
    (tmp_path / "b/bundle.json").write_text(json.dumps(raw))
    with pytest.raises(AceStepError, match="a token around tiles is not among control_tokens"):
        Bundle.read(tmp_path / "b")
