"""The knapsack against every possible choice."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quantize.knapsack import Option, least_loss

# Multiples of the alignment, so that nothing is rounded.
OPTIONS = st.builds(Option, st.integers(0, 20).map(lambda n: 32 * n), st.integers(0, 1000).map(float))


@given(st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 2000))
def test_no_other_choice_loses_less(items: list[list[Option]], budget: int) -> None:
    losses = [
        sum(option.loss for option in chosen)
        for chosen in product(*items)
        if sum(option.n_bytes for option in chosen) <= budget
    ]
    numbers = least_loss(items, budget)
    if numbers is None:
        assert not losses
        return
    chosen = [options[number] for options, number in zip(items, numbers, strict=True)]
    assert sum(option.n_bytes for option in chosen) <= budget
    assert sum(option.loss for option in chosen) == min(losses)


@pytest.mark.parametrize("budget", [10**9, 10**12])
def test_sizes_of_large_models_are_never_exceeded(budget: int) -> None:
    items = [[Option(budget // 10 + extra, 1.0), Option(budget // 13, 2.0)] for extra in range(12)]
    numbers = least_loss(items, budget)
    assert numbers is not None
    assert sum(options[number].n_bytes for options, number in zip(items, numbers, strict=True)) <= budget
