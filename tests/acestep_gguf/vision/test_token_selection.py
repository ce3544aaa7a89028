from math import pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.image_spec import Size
from acestep_gguf.errors import BundleError
from acestep_gguf.vision.token_selection import SPREAD_SHARE, kept_patches, patch_grid

SIDES = st.integers(1, 12)
SEEDS = st.integers(0, 99)


def some_attention(n: int, seed: int, *, distinct: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, distinct, n).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 150), SEEDS)
def test_as_many_as_wanted_each_once_in_reading_order(rows: int, columns: int, n: int, seed: int) -> None:
    attention = some_attention(rows * columns, seed, distinct=3)
    kept = kept_patches(attention, (rows, columns), n)
    assert len(kept) == min(n, rows * columns)
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < rows * columns
    assert (kept == kept_patches(attention, (rows, columns), n)).all()


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 150), SEEDS)
def test_those_that_are_attended_to_most_are_among_them(rows: int, columns: int, n: int, seed: int) -> None:
    attention = np.random.default_rng(seed).permutation(rows * columns).astype(np.float32)
    n = min(n, rows * columns)
    kept = kept_patches(attention, (rows, columns), n)
    most = np.argsort(attention)[::-1][: n - int(SPREAD_SHARE * n)]
    assert set(most) <= set(kept)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.integers(2, 16), st.integers(4, 120), SEEDS)
def test_no_part_of_the_picture_is_left_out(rows: int, columns: int, n: int, seed: int) -> None:
    # All attention in one corner. Those that are spread lie at least as far from each other as the widest
    # gap that is left is wide, r: so circles of radius r/2 around them and around the gap do not overlap.
    n = min(n, rows * columns)
    attention = -np.arange(rows * columns, dtype=np.float32)
    kept = kept_patches(attention, (rows, columns), n)
    row, column = np.divmod(np.arange(rows * columns), columns)
    distances = np.hypot(row[:, None] - row[kept], column[:, None] - column[kept]).min(axis=1)
    r = distances.max()
    assert (int(SPREAD_SHARE * n) + 1) * pi * r**2 / 4 <= (rows - 1 + r) * (columns - 1 + r)


def test_of_equals_the_first() -> None:
    assert kept_patches(np.zeros(9, np.float32), (3, 3), 3).tolist() == [0, 1, 2]
    # One of four is spread: all attention is on the upper left, so it is the lower right corner.
    attention = np.array([9, 8, 0, 7, 0, 0, 0, 0, 0], np.float32)
    assert kept_patches(attention, (3, 3), 4).tolist() == [0, 1, 3, 8]


@pytest.mark.parametrize(
    ("size", "n_patches", "grid"),
    [
        (Size(height=448, width=448), 1024, (32, 32)),
        (Size(height=400, width=400), 784, (28, 28)),  # the last 8 pixels are in no patch
        (Size(height=28, width=56), 8, (2, 4)),
        (Size(height=14, width=14), 1, (1, 1)),
    ],
)
def test_the_grid_of_patches(size: Size, n_patches: int, grid: tuple[int, int]) -> None:
    assert patch_grid(size, n_patches) == grid


def test_what_is_no_grid() -> None:
    with pytest.raises(BundleError, match="do not form a grid"):
        patch_grid(Size(height=448, width=448), 1023)
