import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import ImageSpec, PinpointTiles, Size
from acestep_gguf.convert.checkpoint.config import parse_config
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.image_processor import read_image_spec
from acestep_gguf.convert.checkpoint.tokenizer import read_tokenizer, read_vocabulary
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.tiny_checkpoints import TinyCheckpoint, tiny_onevision

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def read(folder: Path, image_size: int | None = None) -> ImageSpec:
    checkpoint = CheckpointFolder(folder)
    config = parse_config(checkpoint.config, folder / "config.json")
    vocabulary = read_vocabulary(read_tokenizer(checkpoint), config.text_config.vocab_size, None)
    return read_image_spec(checkpoint, config, vocabulary, image_size)


def changed(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


@pytest.fixture
def llava_next(tmp_path: Path) -> Path:
    return TinyCheckpoint(architecture="llava_next").write(tmp_path / "next")


@pytest.fixture
def onevision(tmp_path: Path) -> Path:
    return tiny_onevision().write(tmp_path / "onevision")


def test_both_versions_of_llava_next_say_the_same(tmp_path: Path, llava_next: Path) -> None:
    spec = read(llava_next)
    assert spec == read(TinyCheckpoint(architecture="llava_next", layout="v5").write(tmp_path / "v5"))
    assert spec.tiles == PinpointTiles(grids=GRIDS)
    # The shortest edge and a crop make tiles of this size; the whole picture is stretched to it.
    assert (spec.resize, spec.resize_to, spec.center_crop) == ("exact", Size(height=28, width=28), None)
    assert spec.n_image_tokens == 4


def test_both_versions_of_onevision_say_the_same(tmp_path: Path, onevision: Path) -> None:
    spec = read(onevision)
    assert spec == read(tiny_onevision(layout="v5").write(tmp_path / "v5"))
    assert spec.tiles == PinpointTiles(grids=GRIDS, max_crops=9, square_fill=(127, 127, 127))
    assert spec.n_image_tokens == 4
    few = read(tiny_onevision(max_crops=2).write(tmp_path / "few")).tiles
    assert isinstance(few, PinpointTiles)
    assert few.max_crops == 2


def test_omitted_keys_mean_the_defaults_of_llava_next(tmp_path: Path) -> None:
    folder = TinyCheckpoint(architecture="llava_next", image_size=336).write(tmp_path / "c")
    changed(folder, "config.json", image_grid_pinpoints="absent")
    changed(folder, "preprocessor_config.json", image_grid_pinpoints=None)
    assert read(folder).tiles == PinpointTiles(grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))


def test_omitted_keys_mean_the_defaults_of_onevision(tmp_path: Path) -> None:
    folder = tiny_onevision(image_size=384).write(tmp_path / "c")
    changed(folder, "config.json", image_grid_pinpoints="absent")
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "LlavaOnevisionImageProcessorFast"}'
    )
    spec = read(folder)
    assert spec.size == Size(height=384, width=384)
    assert isinstance(spec.tiles, PinpointTiles)
    assert spec.tiles.grids == tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
    assert spec.tiles.square_fill == (122, 116, 104)  # of CLIP's mean, the class's default


def test_tiles_scale_with_the_size_of_pictures(llava_next: Path) -> None:
    spec = read(llava_next, image_size=56)
    assert (spec.size, spec.resize_to) == (Size(height=56, width=56), Size(height=56, width=56))
    assert (spec.n_image_tokens, spec.tiles) == (16, PinpointTiles(grids=GRIDS))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("pinpoints", [[[28, 56]], [[56, 28], [28, 56], [56, 56], [84, 28], [28, 84]]])
def test_files_that_cut_pictures_up_otherwise_are_refused(
    llava_next: Path, name: str, pinpoints: list[list[int]]
) -> None:
    with pytest.raises(CheckpointError, match="image_grid_pinpoints: make them agree"):
        read(changed(llava_next, name, image_grid_pinpoints=pinpoints))


def test_tiles_of_a_part_of_the_towers_size_are_refused(llava_next: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        changed(llava_next, name, image_grid_pinpoints=[[28, 56], [28, 70]])
    with pytest.raises(UnsupportedModelError, match="28 x 70, which is no number of 28 x 28 tiles"):
        read(llava_next)


@pytest.mark.parametrize("pinpoints", [[[28]], [[28, 28, 28]], [[0, 28]], "large", [["28", "28"]]])
def test_damaged_pinpoints(llava_next: Path, pinpoints: Any) -> None:
    with pytest.raises(CheckpointError, match="image processor's config is damaged"):
        read(changed(llava_next, "preprocessor_config.json", image_grid_pinpoints=pinpoints))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read(changed(llava_next, "config.json", image_grid_pinpoints=pinpoints))


@pytest.mark.parametrize(
    "options", [{"strategy": "full"}, {"tower": "siglip", "activation": "gelu_pytorch_tanh"}]
)
def test_features_that_are_no_square_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = TinyCheckpoint(architecture="llava_next", **options).write(tmp_path / "c")
    changed(folder, "preprocessor_config.json", do_center_crop=False)
    with pytest.raises(UnsupportedModelError, match="leaves no square of features in a tile"):
        read(folder)


@pytest.mark.parametrize("ratio", ["anyres", "anyres_max_", "anyres_max_0", "anyres_max_9x", "pad", None])
def test_other_aspect_ratios_are_refused(onevision: Path, ratio: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match="supported is anyres_max_ with a number"):
        read(changed(onevision, "config.json", vision_aspect_ratio=ratio))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_image_tokens": 5},
        {"vision_aspect_ratio": "anyres_max_4"},
        {"vision_feature_select_strategy": "default"},
    ],
)
def test_processor_that_counts_other_image_tokens_is_an_error(
    onevision: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="make them agree"):
        read(changed(onevision, "processor_config.json", **changes))


def test_class_token_that_the_processor_does_not_count_is_an_error(llava_next: Path) -> None:
    with pytest.raises(CheckpointError, match=r"num_additional_image_tokens 0, config\.json has 1"):
        read(changed(llava_next, "processor_config.json", num_additional_image_tokens=0))


@pytest.mark.parametrize(
    "changes",
    [{"crop_size": {"height": 14, "width": 14}}, {"size": {"shortest_edge": 56}}, {"do_resize": False}],
)
def test_tiles_of_another_size_than_the_towers_are_an_error(
    llava_next: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="do not come out as the 28 x 28"):
        read(changed(llava_next, "preprocessor_config.json", **changes))


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "LlavaOnevisionImageProcessor"])
def test_processors_of_other_models_are_refused(llava_next: Path, kind: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"{kind}: supported for LLaVA-NeXT are LlavaNextImageProcessor"
    ):
        read(changed(llava_next, "preprocessor_config.json", image_processor_type=kind))
