"""Pictures in quarters, as IDEFICS-2 sees them; tests/parity compares them with transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from acestep_gguf.bundle.image_spec import Quarters
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import DecodeError, ImageError, UnsupportedModelError, UsageError
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.embeds import centred_cosines
from acestep_gguf.vision.encoder import ImageEncoder
from acestep_gguf.vision.image import as_seen, crops_of, pixel_values
from acestep_gguf.vision.tiling import n_positions, tiling_of
from acestep_gguf.vision.tower import VisionTower
from tests.acestep_gguf.vision.test_tiling import SIDE, noise, sizes, spec
from tests.support.encoded_pictures import embeds_by_all_ways
from tests.support.fidelity import drawing
from tests.support.tiny_idefics2 import TinyIdefics2

BETWEEN = 7
TILES = Quarters(splits=True, shortest_edge=9, step=4, between=BETWEEN)
WHOLE = Quarters(splits=False, shortest_edge=9, step=4, between=BETWEEN)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((20, 10), (20, 10)),  # neither enlarged nor made whole patches
        ((56, 28), (SIDE, 14)),
        ((27, 55), (13, SIDE)),
        ((4000, 30), (SIDE, 9)),  # stretched, whatever the aspect
        ((1, 1), (9, 9)),
        ((5, 100), (9, SIDE)),
    ],
)
def test_sides_are_neither_too_long_nor_too_short(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    (crop,) = tiling_of(spec(WHOLE)).crops(Image.new("RGB", size))
    assert crop.size == fitted


def test_quarters_come_first_and_have_sizes_of_their_own() -> None:
    image, tiling = noise(21, 31), tiling_of(spec(TILES))
    crops = crops_of(image, tiling)
    assert [crop.shape[:2] for crop in crops] == [(15, 10), (15, 11), (16, 10), (16, 11), (28, 18)]
    pixels = np.asarray(image)
    assert np.array_equal(crops[1], pixels[:15, 10:])
    assert np.array_equal(crops[2], pixels[15:, :10])
    assert (tiling.n_crops((21, 31)), tiling.n_columns((21, 31))) == (5, 2)
    seen = np.asarray(as_seen(crops, image.size, tiling))
    assert seen.shape[:2] == (3 * 28 + 8, 2 * 18 + 4)
    assert np.array_equal(seen[:15, :10], crops[0])
    assert np.array_equal(seen[64:, :18], crops[4])


def test_a_token_stands_between_two_crops() -> None:
    tiling = tiling_of(spec(TILES))
    assert tiling.blocks((20, 10)) == (Block(1, 4),) * 5
    assert tiling.marks((20, 10)) == ((), (BETWEEN,), (BETWEEN,), (BETWEEN,), (BETWEEN,), ())
    assert tiling.most() == (5, 24)
    assert tiling.most_marks() == 4


@given(size=sizes)
def test_all_pictures_have_the_same_number_of_tokens(size: tuple[int, int]) -> None:
    tiling = tiling_of(spec(TILES))
    if min(size) < 2:
        with pytest.raises(ImageError, match="too long and narrow"):
            tiling.blocks(size)
        return
    assert n_positions(tiling, size) == tiling.most()[1]
    assert tiling.working_pixels(size) > size[0] * size[1]


@pytest.mark.parametrize(("max_tiles", "n_crops"), [(None, 5), (4, 5), (3, 1), (1, 1)])
def test_fewer_than_four_tiles_are_the_whole_picture(max_tiles: int | None, n_crops: int) -> None:
    tiling = tiling_of(spec(TILES), max_tiles=max_tiles)
    assert len(tiling.crops(Image.new("RGB", (40, 30)))) == tiling.n_crops((40, 30)) == n_crops
    assert tiling.most() == (n_crops, 5 * n_crops - 1)
    assert tiling_of(spec(WHOLE), max_tiles=max_tiles).most() == (1, 4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shortest_edge": 29}, "29 to 28 pixels"),
        ({"shortest_edge": 3}, "3 to 28 pixels"),
        ({"step": 0}, "patches of 0 pixels"),
        ({"between": -1}, "the token between"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], problem: str) -> None:
    fields = {"splits": True, "shortest_edge": 9, "step": 4, "between": BETWEEN}
    with pytest.raises(ValueError, match=problem):
        spec(Quarters(**fields | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idefics2")
    checkpoint = TinyIdefics2(decoder="mistral", sliding_window=4096).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ["F32"])
    return folder / "bundle"


def make(bundle: Path, **options: Any) -> ImageEncoder:
    return ImageEncoder(bundle, Bundle.read(bundle), **{"n_threads": 1, **options})


@pytest.mark.parametrize("size", [(90, 61), (30, 200), (2, 3)])
def test_the_int8_tower_is_close_for_every_size(folder: Path, size: tuple[int, int]) -> None:
    bundle = Bundle.read(folder)
    exact, int8 = (VisionTower(folder, bundle, precision, n_threads=1) for precision in ("float32", "int8"))
    crops = pixel_values(drawing(size, 0), bundle.tower()[1])
    assert len(crops) == 5
    cosines = [centred_cosines(int8.encode(crop).embeds, exact.encode(crop).embeds) for crop in crops]
    assert np.mean(cosines) > 0.99
    assert np.min(cosines) > 0.95


@pytest.mark.parametrize("shape", [(1, 3, 56, 57), (1, 3, 6, 56), (2, 3, 56, 56), (1, 3, 56)])
def test_other_shapes_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    tower = VisionTower(folder, Bundle.read(folder), n_threads=1)
    with pytest.raises(DecodeError, match=r"float32 or less \(1, 3, 56, 56\)"):
        tower.encode(np.zeros(shape, np.float32))


def test_pictures_of_one_color_differ_by_their_size(folder: Path) -> None:
    """Their crops have the same bytes, and other shapes."""
    encoder = make(folder)
    wide, high = (encoder.prepare(Image.new("RGB", size, (9, 9, 9))) for size in ((120, 60), (60, 120)))
    assert wide.sha256 != high.sha256
    assert not np.allclose(encoder.encode(wide).embeds, encoder.encode(high).embeds)


def test_answers_are_the_same_from_anywhere(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    drawing((90, 61), 0).save(picture)
    embeds, file = embeds_by_all_ways(folder, picture, tmp_path)
    with AceStep(folder, n_ctx=256, n_threads=1, cache=False) as model:
        answer = model.generate("x", [picture], max_tokens=8)
        assert answer.usage.image_tokens == len(embeds) + 4
        assert model.generate("x", [file], max_tokens=8).tokens == answer.tokens
        two = model.generate("x", [picture, picture], max_tokens=8)
        assert two.usage.image_tokens == 2 * answer.usage.image_tokens
        # The token between both pictures stands there once.
        assert two.usage.prompt_tokens - two.usage.image_tokens == (
            answer.usage.prompt_tokens - answer.usage.image_tokens + 1
        )
    with AceStep(folder, n_ctx=256, n_threads=1, cache=False, max_tiles=1) as model:
        assert model.generate("x", [picture], max_tokens=8).usage.image_tokens == 6


def test_fewer_tokens_of_a_crop_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"among patches.*max_tiles=1"):
        make(folder, image_tokens=3)


def test_an_mmproj_file_is_refused(tmp_path: Path) -> None:
    checkpoint = TinyIdefics2(decoder="mistral").write(tmp_path / "c")
    with pytest.raises(UnsupportedModelError, match=r"llama\.cpp has no resampler as Idefics2's"):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"], mmproj=["F16"])
