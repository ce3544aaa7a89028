import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quality.measures import Floats, kl_divergences, log_probabilities
from acestep_gguf.quality.rounded import RoundedLogProbabilities

logits = st.lists(st.lists(st.floats(-40, 40, width=32), min_size=5, max_size=5), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, np.float32)
)


@given(logits)
def test_within_16_nats_of_the_largest_the_error_is_half_a_step(rows: Floats) -> None:
    rounded, exact = RoundedLogProbabilities.of(rows).values(), log_probabilities(rows)
    near = rows > rows.max(axis=1, keepdims=True) - 16
    assert np.abs(rounded - exact)[near].max() <= 0.5 * 16 / 65535 + 1e-5


def test_what_is_further_below_is_put_16_below() -> None:
    rounded = RoundedLogProbabilities.of(np.array([[0, -10, -16, -30]], np.float32))
    assert rounded.steps[0].tolist()[0] == 65535
    assert rounded.steps[0].tolist()[2:] == [0, 0]
    np.testing.assert_allclose(rounded.values()[0], [0, -10, -16, -16], atol=2e-4)


def test_equal_logits_have_no_scale() -> None:
    rounded = RoundedLogProbabilities.of(np.full((1, 4), 3, np.float32))
    np.testing.assert_allclose(np.exp(rounded.values()), np.full((1, 4), 0.25), rtol=1e-6)


def test_figures_are_those_of_exact_logits_but_for_the_rounding() -> None:
    random = np.random.default_rng(0)
    best = random.normal(size=(20, 50)).astype(np.float32) * 2
    other = best + random.normal(size=best.shape).astype(np.float32) * 0.3
    rounded = RoundedLogProbabilities.of(best)
    np.testing.assert_allclose(rounded.kl_divergences(other), kl_divergences(best, other), atol=1e-4)
    assert (rounded.same_top_1(other) == (best.argmax(axis=1) == other.argmax(axis=1))).all()
    tokens = random.integers(0, 50, 20)
    expected = log_probabilities(best)[np.arange(20), tokens]
    np.testing.assert_allclose(rounded.of_tokens(tokens), expected, atol=2e-4)
