import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quality.measures import (
    Floats,
    kl_divergences,
    log_probabilities,
    n_alike,
    same_top_1,
    token_log_probabilities,
)

logits = st.lists(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, np.float32)
)


@given(logits)
def test_probabilities_add_up_to_one(rows: Floats) -> None:
    np.testing.assert_allclose(np.exp(log_probabilities(rows)).sum(axis=1), 1)


def test_large_logits_do_not_overflow() -> None:
    assert np.isfinite(log_probabilities(np.array([[1e30, 0, -1e30]], np.float32))).all()


@given(logits)
def test_equal_models_agree(rows: Floats) -> None:
    assert same_top_1(rows, rows).tolist() == [True] * len(rows)
    assert kl_divergences(rows, rows).tolist() == [0] * len(rows)
    np.testing.assert_allclose(kl_divergences(rows, rows + np.float32(3)), 0, atol=1e-4)


def test_divergence_of_two_coins() -> None:
    fair, unfair = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.9, 0.1]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergences(fair, unfair)[0] == pytest.approx(expected, rel=1e-5)
    assert kl_divergences(unfair, fair)[0] != pytest.approx(expected, rel=1e-2)


def test_each_position_has_its_own_figures() -> None:
    best = np.array([[0, 1, 2], [3, 1, 0]], np.float32)
    other = np.array([[0, 1, 2], [1, 3, 0]], np.float32)
    assert same_top_1(best, other).tolist() == [True, False]
    first, second = kl_divergences(best, other)
    assert first == 0 < second == kl_divergences(best[1:], other[1:])[0]


def test_padding_rows_of_the_vocabulary_do_not_count() -> None:
    best = np.array([[0, 1, 2]], np.float32)
    padded = np.array([[0, 1, 2, 50]], np.float32)
    assert kl_divergences(best, padded)[0] == kl_divergences(padded, best)[0] == 0
    assert same_top_1(best, padded)[0]


def test_probability_of_the_given_tokens() -> None:
    rows = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    np.testing.assert_allclose(np.exp(token_log_probabilities(rows, [0, 2])), [0.5, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [3, 2], 0), ([1, 2], [1, 3], 1)],
)
def test_tokens_before_the_first_difference(one: list[int], other: list[int], expected: int) -> None:
    assert n_alike(one, other) == n_alike(other, one) == expected
