"""Pictures of any size, as Pixtral sees them; tests/parity compares them with transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from acestep_gguf.bundle.image_spec import AnySize
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import AceStepError, DecodeError, ImageError, UsageError
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.embeds import centred_cosines
from acestep_gguf.vision.encoder import ImageEncoder
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.tiling import n_positions, tiling_of
from acestep_gguf.vision.tower import VisionTower
from tests.acestep_gguf.vision.test_tiling import SIDE, sizes, spec
from tests.support.encoded_pictures import embeds_by_all_ways
from tests.support.fidelity import drawing
from tests.support.tiny_pixtral import ROW_END, TinyPixtral

TILES = AnySize(step=SIDE // 2)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((SIDE, SIDE), (SIDE, SIDE)),
        ((1, 1), (SIDE // 2, SIDE // 2)),  # small pictures stay small
        ((SIDE // 2, SIDE), (SIDE // 2, SIDE)),
        ((4 * SIDE, SIDE), (SIDE, SIDE // 2)),
        ((SIDE // 2 + 1, 5), (SIDE, SIDE // 2)),  # stretched to whole patches
    ],
)
def test_pictures_keep_their_size_as_far_as_may_be(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    (crop,) = tiling_of(spec(TILES)).crops(Image.new("RGB", size))
    assert crop.size == fitted


def test_each_row_but_the_last_has_an_end() -> None:
    tiling = tiling_of(spec(TILES))
    assert tiling.blocks((SIDE, SIDE)) == (Block(1, 2, has_newlines=True), Block(1, 2))
    assert tiling.blocks((SIDE, 3)) == (Block(1, 2),)
    assert n_positions(tiling, (SIDE, SIDE)) == 5
    assert tiling.most() == (1, 5)


@given(size=sizes)
def test_no_picture_has_more_than_the_largest(size: tuple[int, int]) -> None:
    tiling = tiling_of(spec(TILES))
    try:
        n_tokens = n_positions(tiling, size)
    except ImageError:
        return  # too narrow
    assert 1 <= n_tokens <= tiling.most()[1]


def test_a_picture_of_no_height_is_refused() -> None:
    with pytest.raises(ImageError, match="too long and narrow"):
        tiling_of(spec(TILES)).blocks((4000, 30))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="not as many patches"):
        spec(AnySize(step=5))
    with pytest.raises(ValueError, match="patches of 0 pixels"):
        AnySize(step=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixtral")
    checkpoint = TinyPixtral(decoder="mistral").write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ["F32"])
    return folder / "bundle"


def make(bundle: Path, **options: Any) -> ImageEncoder:
    return ImageEncoder(bundle, Bundle.read(bundle), **{"n_threads": 1, **options})


@pytest.mark.parametrize("size", [(64, 64), (8, 64), (24, 16), (200, 90)])
def test_the_int8_tower_is_close_for_every_size(folder: Path, size: tuple[int, int]) -> None:
    bundle = Bundle.read(folder)
    (pixels,) = pixel_values(drawing(size, 0), bundle.tower()[1])
    exact, int8 = (
        VisionTower(folder, bundle, precision, n_threads=1).encode(pixels).embeds
        for precision in ("float32", "int8")
    )
    assert exact.shape == (pixels.shape[2] * pixels.shape[3] // 64, bundle.tower()[1].n_embd)
    cosines = centred_cosines(int8, exact)
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.95


@pytest.mark.parametrize("shape", [(1, 3, 64, 72), (1, 3, 64, 60), (1, 3, 0, 64), (2, 3, 64, 64), (1, 3, 64)])
def test_other_shapes_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    tower = VisionTower(folder, Bundle.read(folder), n_threads=1)
    with pytest.raises(DecodeError, match=r"float32 or less \(1, 3, 64, 64\)"):
        tower.encode(np.zeros(shape, np.float32))


def test_rows_end_with_the_decoders_own_embedding(folder: Path) -> None:
    tiny = TinyPixtral(decoder="mistral")
    embeddings = tiny.tensors()["language_model.model.embed_tokens.weight"]
    bundle = Bundle.read(folder)
    row_end = VisionTower(folder, bundle, n_threads=1).image_newline
    assert row_end is not None
    assert np.abs(row_end - embeddings[bundle.prompt.control_tokens[ROW_END]]).max() < 0.02  # bfloat16
    encoder = make(folder)
    rows = encoder.rows(encoder.prepare(drawing((24, 16), 0)))
    assert len(rows) == 7
    assert np.array_equal(rows[3], row_end)


def test_answers_are_the_same_from_anywhere(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    drawing((90, 61), 0).save(picture)
    embeds, file = embeds_by_all_ways(folder, picture, tmp_path)
    with AceStep(folder, n_ctx=256, n_threads=1, cache=False) as model:
        answer = model.generate("x", [picture], max_tokens=8)
        assert answer.usage.image_tokens == len(embeds)
        assert model.generate("x", [file], max_tokens=8).tokens == answer.tokens


def test_fewer_tokens_of_a_picture_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="for pictures of any size: leave it out"):
        make(folder, image_tokens=3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"patch_size": {"height": 16, "width": 16}}, "is not the tower's 8"),
        ({"image_processor_type": "CLIPImageProcessor"}, "does not go with a pixtral tower"),
        ({"size": {"longest_edge": 128}}, "64 x 64"),
    ],
)
def test_other_image_processors_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    checkpoint = TinyPixtral(decoder="mistral").write(tmp_path / "c")
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AceStepError, match=problem):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"])
