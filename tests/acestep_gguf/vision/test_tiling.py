"""Crops, rows and token counts of tiled pictures; tests/parity compares them with transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acestep_gguf.bundle.image_spec import ClosestAspectTiles, ImageSpec, PinpointTiles, Size, Tiles
from acestep_gguf.vision.blocks import Block, n_tokens, packed
from acestep_gguf.vision.image import as_seen, crops_of
from acestep_gguf.vision.tiling import tiling_of

SIDE = 28
SIZE = Size(height=SIDE, width=SIDE)
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-1.6's
INTERNVL = ClosestAspectTiles(min_tiles=1, max_tiles=12)
NEXT = PinpointTiles(grids=GRIDS)
ONEVISION = PinpointTiles(
    grids=tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7)),
    max_crops=9,
    square_fill=(122, 116, 104),
)


def spec(tiles: Tiles | None, **changes: Any) -> ImageSpec:
    fields: dict[str, Any] = {
        "pad_to_square": None,
        "resize": "exact",
        "resize_to": SIZE,
        "resample": "bicubic",
        "center_crop": None,
        "rescale_factor": 1 / 255,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "size": SIZE,
        "n_image_tokens": 4,
        "n_embd": 8,
        "tiles": tiles,
    }
    return ImageSpec(**fields | changes)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@pytest.mark.parametrize("tiles", [None, INTERNVL, NEXT, ONEVISION])
@pytest.mark.parametrize("n_pictures", [1, 2])
@given(size=sizes, max_tiles=st.none() | st.integers(1, 20))
def test_counts_are_known_from_the_size_alone(
    tiles: Tiles | None,
    n_pictures: int,
    size: tuple[int, int],
    max_tiles: int | None,
) -> None:
    tiling = tiling_of(spec(tiles), max_tiles=max_tiles, n_pictures=n_pictures)
    crops, blocks = crops_of(noise(*size), tiling), tiling.blocks(size)
    assert [crop.shape for crop in crops] == [(SIDE, SIDE, 3)] * tiling.n_crops(size)
    features = np.arange(len(crops) * 4 * 8, dtype=np.float32).reshape(len(crops), 4, 8)
    rows = packed(tiling.grids(features, size), blocks, np.zeros(8, np.float32))
    assert rows.shape == (n_tokens(blocks), 8)
    most_crops, most_tokens = tiling.most()
    assert len(crops) <= most_crops
    assert len(rows) <= most_tokens
    assert most_tokens >= 4
    if max_tiles == 1:
        assert len(crops) == 1


@pytest.mark.parametrize(
    ("size", "n_crops"),
    [
        ((640, 480), 13),  # 4 x 3 and the whole, however small a 4:3 picture is
        ((4, 3), 13),
        ((448, 448), 1),
        ((900, 900), 5),  # large enough for 2 x 2
        ((4000, 30), 13),
        ((1, 1), 1),
    ],
)
def test_internvl_takes_the_grid_of_the_closest_aspect(size: tuple[int, int], n_crops: int) -> None:
    tiling = tiling_of(
        spec(
            INTERNVL,
            size=Size(height=448, width=448),
            resize_to=Size(height=448, width=448),
            n_image_tokens=256,
        )
    )
    assert tiling.n_crops(size) == n_crops
    assert n_tokens(tiling.blocks(size)) == 256 * n_crops


@pytest.mark.parametrize(
    ("size", "grid", "n"),
    [
        ((672, 672), (48, 48), 2928),
        ((1000, 200), (14, 72), 576 + 14 * 73),
        ((640, 480), (36, 48), 576 + 36 * 49),
    ],
)
def test_next_leaves_out_what_is_padding(size: tuple[int, int], grid: tuple[int, int], n: int) -> None:
    side = Size(height=336, width=336)
    tiling = tiling_of(spec(NEXT, size=side, resize_to=side, n_image_tokens=576))
    whole, seen = tiling.blocks(size)
    assert whole == Block(24, 24)
    assert seen == Block(*grid, has_newlines=True)
    assert n_tokens((whole, seen)) == n


def test_tiles_lie_where_they_were_cut_out() -> None:
    image = noise(3 * SIDE, 2 * SIDE)
    for tiles, is_first in ((INTERNVL, False), (PinpointTiles(grids=((2, 3),)), True)):
        tiling = tiling_of(spec(tiles))
        crops = crops_of(image, tiling)
        order = crops[1:] if is_first else crops[:-1]
        rows = [np.concatenate(order[start : start + 3], axis=1) for start in (0, 3)]
        assert np.array_equal(np.concatenate(rows), np.asarray(image))
        seen = as_seen(crops, image.size, tiling)
        assert seen.size == (3 * SIDE + 8, 3 * SIDE + 8)  # the whole is below
        assert np.array_equal(np.asarray(seen)[:SIDE, :SIDE], crops[1 if is_first else 0])


def test_rows_of_tiles_end_with_newlines() -> None:
    tiling = tiling_of(spec(PinpointTiles(grids=((1, 2),))))
    size = (2 * SIDE, SIDE)
    features = np.arange(3 * 4, dtype=np.float32).reshape(3, 4, 1)  # the whole, and two tiles
    rows = packed(tiling.grids(features, size), tiling.blocks(size), np.array([-1], np.float32))
    assert rows[:, 0].tolist() == [0, 1, 2, 3, *(4, 5, 8, 9, -1), *(6, 7, 10, 11, -1)]
    without = packed(tiling.grids(features, size), tiling.blocks(size), None)
    assert without[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]


def test_many_tokens_are_shrunk_evenly() -> None:
    """A grid of 2 x 1 in the place of four of 2 x 2 tiles: each is the mean of those that it stands for."""
    tiling = tiling_of(spec(PinpointTiles(grids=((2, 2),), max_crops=1)))
    size = (2 * SIDE, 2 * SIDE)
    assert tiling.blocks(size)[1] == Block(2, 2, has_newlines=True)
    features = np.ones((5, 4, 1), np.float32)
    assert np.allclose(tiling.grids(features, size)[1], 1)
    features[1] = 3  # the upper left tile, which is one token afterwards
    assert tiling.grids(features, size)[1][:, :, 0].tolist() == [[3, 1], [1, 1]]


def test_several_pictures_are_squares_for_onevision() -> None:
    tiling = tiling_of(spec(ONEVISION), n_pictures=2)
    crops = crops_of(Image.new("RGB", (40, 20), (255, 0, 0)), tiling)
    assert len(crops) == 1
    assert crops[0][0, 0].tolist() == [122, 116, 104]
    assert crops[0][14, 14].tolist() == [255, 0, 0]
    assert n_tokens(tiling.blocks((40, 20))) == 5, "one newline ends it"


def test_of_a_thread_only_the_whole_is_left() -> None:
    whole, seen = tiling_of(spec(NEXT)).blocks((50_000, 1))
    assert whole.n_tokens == 4
    assert seen.n_tokens == 0


@pytest.mark.parametrize(
    ("family", "tiles", "side", "n_tile"),
    [
        ("InternVL2.5, 3, 3.5", INTERNVL, 448, 256),
        ("LLaVA-NeXT", NEXT, 336, 576),
        ("LLaVA-OneVision", ONEVISION, 384, 729),
    ],
)
def test_the_page_about_tiles_has_these_counts(
    family: str, tiles: ClosestAspectTiles | PinpointTiles, side: int, n_tile: int
) -> None:
    size = Size(height=side, width=side)
    tiling = tiling_of(spec(tiles, size=size, resize_to=size, n_image_tokens=n_tile))
    page = (Path(__file__).parents[3] / "docs/tiles.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {family} |"))
    counts = [cell.strip().replace(",", "") for cell in row.split("|")[-3:-1]]
    assert counts == [str(n_tokens(tiling.blocks(picture))) for picture in ((640, 480), (1920, 1080))]
