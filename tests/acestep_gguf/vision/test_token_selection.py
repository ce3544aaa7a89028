import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.token_selection import kept_of_blocks, kept_patches

SEEDS = st.integers(0, 99)
N_EMBD = 16


def some_embeds(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, N_EMBD), np.float32)


def equal_attention(n: int) -> np.ndarray:
    return np.full(n, 0.1, np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(0, 100), SEEDS, st.sampled_from((1, 2, 1000)))
def test_as_many_as_wanted_each_once_in_reading_order(
    n_patches: int, n: int, seed: int, distinct: int
) -> None:
    """Also where patches have the same embeds, and where more are kept than there are directions."""
    numbers = np.random.default_rng(seed)
    embeds = some_embeds(n_patches, seed)[numbers.integers(0, distinct, n_patches) % n_patches]
    attention = numbers.integers(0, distinct, n_patches).astype(np.float32)
    kept = kept_patches(embeds, attention, n)
    assert len(kept) == min(n, n_patches)
    assert (np.diff(kept) > 0).all()
    assert (kept >= 0).all()
    assert (kept < n_patches).all()
    assert (kept == kept_patches(embeds, attention, n)).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_determinant_grows_by_as_much_as_it_can(seed: int) -> None:
    """Each step against the determinants themselves, of all sets that are one patch larger."""
    numbers = np.random.default_rng(seed)
    embeds, attention = some_embeds(9, seed), numbers.random(9, np.float32)
    centred = embeds - embeds.mean(axis=0)
    directions = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    roots = np.sqrt(attention - attention.min())
    weights = 0.4 + 0.6 * roots / roots.max()
    kernel = weights[:, None] * (directions @ directions.T) * weights
    kept: list[int] = []
    for n in range(1, 6):
        rest = [patch for patch in range(9) if patch not in kept]
        kept.append(
            max(rest, key=lambda patch: np.linalg.det(kernel[np.ix_([*kept, patch], [*kept, patch])]))
        )
        assert kept_patches(embeds, attention, n).tolist() == sorted(kept)


def test_no_two_that_say_the_same() -> None:
    different = some_embeds(6)
    embeds = np.repeat(different, 5, axis=0)  # five patches of each of six kinds
    kept = kept_patches(embeds, equal_attention(30), 6)
    assert (kept // 5).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_all_patches_share_does_not_make_them_alike() -> None:
    embeds = some_embeds(30)
    found = kept_patches(embeds, equal_attention(30), 10)
    assert kept_patches(embeds + 1000, equal_attention(30), 10).tolist() == found.tolist()


def test_of_those_that_are_equally_unlike_what_is_attended_to() -> None:
    embeds = np.concatenate([np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)])
    attention = equal_attention(16)
    attention[[3, 8 + 5]] = 0.9
    first, second = kept_patches(embeds, attention, 2).tolist()
    assert (first, second) == (3, 13)


def test_of_equals_the_first() -> None:
    assert kept_patches(np.ones((9, 4), np.float32), equal_attention(9), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38])
def test_numbers_of_any_size(scale: float) -> None:
    """A file of embeds may hold any that are finite."""
    embeds = np.clip(some_embeds(20), -1, 1)
    expected = kept_patches(embeds, equal_attention(20), 8).tolist()
    with np.errstate(all="raise", under="ignore"):
        assert kept_patches(embeds * np.float32(scale), equal_attention(20), 8).tolist() == expected


def test_each_grid_gets_its_share_and_no_ends_of_rows_are_kept() -> None:
    blocks = (Block(2, 3), Block(4, 4, has_newlines=True))
    n_rows = 6 + 4 * 5
    embeds, attention = some_embeds(n_rows), np.random.default_rng(1).random(6 + 16, np.float32)
    newlines = {6 + 4 + 5 * row for row in range(4)}
    for n in range(1, 23):
        kept = kept_of_blocks(embeds, attention, blocks, n)
        assert len(kept) == n
        assert (np.diff(kept) > 0).all()
        assert not newlines & set(kept.tolist())
        assert (kept < 6).sum() == n * 6 // 22
    patches = [row for row in range(6, n_rows) if row not in newlines]
    expected = kept_patches(embeds[patches], attention[6:], 8)
    kept = kept_of_blocks(embeds, attention, blocks, 11)
    assert kept[kept >= 6].tolist() == [patches[patch] for patch in expected]
