"""What SmolVLM's and Idefics3's folders say; tests/parity compares them with transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acestep_gguf.bundle.image_spec import LongestEdgeTiles, Size
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.convert.tower.position_embedding import fractional_buckets
from acestep_gguf.errors import AceStepError, CheckpointError, UnsupportedModelError
from tests.support.tiny_smolvlm import TinySmolVLM


def tiny(**options: Any) -> TinySmolVLM:
    return TinySmolVLM(**{"decoder": "smollm", **options})


def read(folder: Path, image_size: int | None = None) -> CheckpointModel:
    with open_model(folder, image_size) as model:
        return model


def changed(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def tiles(model: CheckpointModel) -> LongestEdgeTiles:
    assert model.image is not None
    assert isinstance(model.image.tiles, LongestEdgeTiles)
    return model.image.tiles


def test_tokens_around_tiles_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    checkpoint = tiny()
    model = read(checkpoint.write(tmp_path / "c"))
    ids, marks = model.vocabulary.ids, tiles(model).marks
    assert (marks.around, marks.whole) == (ids["<fake_token_around_image>"], ids["<global-img>"])
    assert marks.tiles[2] == tuple(ids[f"<row_3_col_{column}>"] for column in range(1, 5))
    assert (marks.line, marks.blank_line) == ((ids["Ċ"],), (ids["ĊĊ"],))
    assert model.prompt.stop_tokens == ("<end_of_utterance>",)
    # A tokenizer that merges no two line ends has two tokens there.
    (line,) = tiles(read(tiny(decoder="llama3").write(tmp_path / "llama3"))).marks.line
    assert tiles(read(tmp_path / "llama3")).marks.blank_line == (line, line)


def test_they_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    folder = tiny().write(tmp_path / "c")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = not token["content"].startswith(("<row_", "<global", "<fake_"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = read(folder)
    assert set(tiles(model).marks.control_ids) <= set(model.prompt.control_tokens.values())


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("name", ["idefics3", "idefics3_vision", "smolvlm_vision", None])
def test_the_tower_is_the_same_whatever_it_is_called(
    tmp_path: Path, model_type: str, name: str | None
) -> None:
    folder = tiny(model_type=model_type).write(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"].pop("model_type")
    config["vision_config"] |= {} if name is None else {"model_type": name}
    changed(folder, "config.json", vision_config=config["vision_config"])
    assert read(folder).source.vision_model_type == "idefics3_vision"


def test_another_size_has_as_many_tiles(tmp_path: Path) -> None:
    folder = tiny().write(tmp_path / "c")
    model = read(folder, 48)
    assert model.image is not None
    assert (model.image.size, model.image.n_image_tokens) == (Size(height=48, width=48), 9)
    assert tiles(model).longest_edge == 192
    assert tiles(model).marks == tiles(read(folder)).marks


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"do_image_splitting": False}, "does not cut"),
        ({"do_resize": False}, "32 x 32"),
        ({"size": {"height": 9, "width": 9}}, "no longest_edge"),
        ({"size": {"longest_edge": 127}}, "side of 127 pixels"),
        ({"size": {"longest_edge": 256}}, "no token <row_1_col_7>"),
        ({"max_image_size": {"longest_edge": 16}}, "32 x 32"),
        ({"image_processor_type": "CLIPImageProcessor"}, "supported for Idefics3 are"),
    ],
)
def test_other_image_processors_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    folder = changed(tiny().write(tmp_path / "c"), "preprocessor_config.json", **changes)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=problem):
        read(folder)


@pytest.mark.parametrize(
    ("file", "changes", "problem"),
    [
        ("processor_config.json", {"image_seq_len": 169}, "image_seq_len 169"),
        ("config.json", {"scale_factor": 3}, "scale_factor 3 does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], problem: str
) -> None:
    folder = changed(tiny().write(tmp_path / "c"), file, **changes)
    with pytest.raises(CheckpointError, match=problem):
        read(folder)


def test_readers_before_version_4_refuse_such_bundles(tmp_path: Path) -> None:
    bundle = convert_checkpoint(tiny().write(tmp_path / "c"), tmp_path / "b", ["Q8_0"], vision=["float32"])
    assert bundle.min_reader_version == 4
    raw = json.loads((tmp_path / "b/bundle.json").read_text())
    raw["image"]["tiles"]["marks"]["whole"] = 5
    (tmp_path / "b/bundle.json").write_text(json.dumps(raw))
    with pytest.raises(AceStepError, match="a token around tiles is not among control_tokens"):
        Bundle.read(tmp_path / "b")


def test_patches_take_the_position_of_their_share() -> None:
    for published in (26, 27, 32, 70):
        assert fractional_buckets(published, published).tolist() == list(range(published))
    assert fractional_buckets(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert fractional_buckets(4, 6).tolist() == [0, 0, 1, 2, 2, 3]
    assert fractional_buckets(8, 4).tolist() == [0, 2, 4, 6]
    assert np.all(np.diff(fractional_buckets(32, 100)) >= 0)
