import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quality.measures import Floats, agreement, log_probabilities, n_alike

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
    found = agreement(rows, rows)
    assert (found.n_tokens, found.n_same_top_1) == (len(rows), len(rows))
    assert found.kl_divergence == 0
    assert agreement(rows, rows + np.float32(3)).kl_divergence == pytest.approx(0, abs=1e-4)


def test_divergence_of_two_coins() -> None:
    fair, unfair = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.9, 0.1]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    found = agreement(fair, unfair)
    assert found.kl_divergence == pytest.approx(expected, rel=1e-5)
    assert agreement(unfair, fair).kl_divergence != pytest.approx(expected, rel=1e-2)


def test_divergence_adds_up_and_top_1_is_counted() -> None:
    best = np.array([[0, 1, 2], [3, 1, 0]], np.float32)
    other = np.array([[0, 1, 2], [1, 3, 0]], np.float32)
    found = agreement(best, other)
    assert (found.n_tokens, found.n_same_top_1) == (2, 1)
    assert found.kl_divergence == agreement(best[1:], other[1:]).kl_divergence > 0


def test_padding_rows_of_the_vocabulary_do_not_count() -> None:
    best = np.array([[0, 1, 2]], np.float32)
    padded = np.array([[0, 1, 2, 50]], np.float32)
    assert agreement(best, padded).kl_divergence == agreement(padded, best).kl_divergence == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [3, 2], 0), ([1, 2], [1, 3], 1)],
)
def test_tokens_before_the_first_difference(one: list[int], other: list[int], expected: int) -> None:
    assert n_alike(one, other) == n_alike(other, one) == expected
