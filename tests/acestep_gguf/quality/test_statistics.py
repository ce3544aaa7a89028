import numpy as np
import pytest

from acestep_gguf.quality.statistics import Estimate, divergence_of, perplexity_of, share_of


def test_figures_are_over_all_tokens_not_over_answers() -> None:
    answers = [np.array([1.0]), np.arange(2.0, 101.0)]
    found = divergence_of(answers)
    assert found.mean.value == 50.5
    assert found.p90.value == pytest.approx(90.1)
    assert found.p99.value == pytest.approx(99.01)


def test_one_answer_has_no_interval() -> None:
    assert share_of([np.array([True, False])]) == Estimate(0.5, None, None)


def test_answers_are_what_is_drawn() -> None:
    """Tokens that are all alike within an answer say no more than one of them."""
    values = np.random.default_rng(0).normal(10, 1, 100)
    few, many = ([np.full(n, value) for value in values] for n in (1, 50))
    one, other = divergence_of(few).mean, divergence_of(many).mean
    assert one.low is not None
    assert one.high is not None
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * values.std() / 10, rel=0.1)
    assert one.low < one.value < one.high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        answers = [random.exponential(1, 20) * random.uniform(0.5, 1.5) for _ in range(40)]
        found = perplexity_of(answers)  # the quickest, of a mean alone
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.exp(-1) <= found.high
    assert held >= 34


def test_the_same_answers_have_the_same_interval() -> None:
    answers = [np.array([True, False, True]), np.array([False]), np.array([True])]
    assert share_of(answers) == share_of(answers)


def test_perplexity_of_even_chances_is_their_number() -> None:
    found = perplexity_of([np.log(np.full(3, 1 / 8)), np.log(np.full(9, 1 / 8))])
    assert found.value == pytest.approx(8)
    assert (found.low, found.high) == pytest.approx((8, 8))
