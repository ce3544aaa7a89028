"""SmolVLM's tiles and the tokens around them; tests/parity compares them with transformers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.bundle.image_spec import LongestEdgeTiles, TileMarks
from acestep_gguf.vision.tiling import n_positions, tiling_of
from tests.acestep_gguf.vision.test_tiling import SIDE, sizes, spec

AROUND, WHOLE, LINE, BLANK_LINE = 1, 2, 3, 4
MARKS = TileMarks(
    around=AROUND,
    whole=WHOLE,
    tiles=tuple(tuple(100 + 10 * row + column for column in range(1, 5)) for row in range(1, 5)),
    line=(LINE,),
    blank_line=(BLANK_LINE,),
)
TILES = LongestEdgeTiles(longest_edge=4 * SIDE, marks=MARKS)


@pytest.mark.parametrize(
    ("size", "max_tiles", "grid"),
    [
        ((640, 480), None, (3, 4)),
        ((480, 640), None, (4, 3)),
        ((1, 1), None, (4, 4)),  # small pictures are enlarged
        ((4000, 30), None, (1, 4)),
        ((640, 480), 12, (3, 4)),
        ((640, 480), 11, (3, 3)),  # a longer side of three tiles, and 2.25 for the other
        ((640, 480), 8, (2, 2)),
        ((640, 480), 3, (1, 1)),
        ((4000, 30), 2, (1, 2)),
    ],
)
def test_the_longer_side_has_as_many_tiles_as_may_be(
    size: tuple[int, int], max_tiles: int | None, grid: tuple[int, int]
) -> None:
    tiling = tiling_of(spec(TILES), max_tiles=max_tiles)
    rows, columns = grid
    n_tiles = rows * columns
    assert tiling.n_crops(size) == n_tiles + (n_tiles > 1)
    assert tiling.n_columns(size) == columns


def test_tokens_stand_around_tiles() -> None:
    assert tiling_of(spec(TILES), max_tiles=4).marks((2 * SIDE, 2 * SIDE)) == (
        (AROUND, 111),
        (AROUND, 112),
        (LINE, AROUND, 121),
        (AROUND, 122),
        (BLANK_LINE, AROUND, WHOLE),
        (AROUND,),
    )
    assert tiling_of(spec(TILES), max_tiles=1).marks((5, 9)) == ((AROUND, WHOLE), (AROUND,))


@given(size=sizes, max_tiles=st.none() | st.integers(1, 20))
def test_no_picture_has_more_than_the_most(size: tuple[int, int], max_tiles: int | None) -> None:
    tiling = tiling_of(spec(TILES), max_tiles=max_tiles)
    n_crops, n_tokens = tiling.n_crops(size), n_positions(tiling, size)
    marks = tiling.marks(size)
    assert n_tokens == 4 * n_crops + sum(map(len, marks))
    most_crops, most_tokens = tiling.most()
    assert n_crops <= most_crops <= (max_tiles or 16) + 1
    assert n_tokens <= most_tokens
    assert sum(map(len, marks)) <= tiling.most_marks()
    # Fewer tokens for patches leave the marks as they are.
    assert n_positions(tiling, size, image_tokens=2) == 2 + sum(map(len, marks))


@pytest.mark.parametrize("max_tiles", [None, 9, 4, 1])
def test_some_picture_has_the_most(max_tiles: int | None) -> None:
    tiling = tiling_of(spec(TILES), max_tiles=max_tiles)
    aspects = [(width, height) for width in range(1, 5) for height in range(1, 5)]
    n_crops, n_tokens = tiling.most()
    assert n_crops == max(map(tiling.n_crops, aspects))
    assert n_tokens == max(n_positions(tiling, size) for size in aspects)


def test_what_no_model_has_is_refused() -> None:
    with pytest.raises(ValueError, match="a longer side of 113 pixels"):
        LongestEdgeTiles(longest_edge=113, marks=MARKS)
    with pytest.raises(ValueError, match="no tokens for 5 rows and columns"):
        spec(LongestEdgeTiles(longest_edge=4 * SIDE + 2, marks=MARKS))
    with pytest.raises(ValueError, match="ends of rows of tiles"):
        replace(MARKS, line=())
    with pytest.raises(ValueError, match="a token around tiles"):
        replace(MARKS, around=-1)
