"""One option for each item, so that least is lost at a given size: a knapsack, by dynamic programming."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

# Sizes are rounded up to a budget's share of this, or to a tensor's alignment.
N_UNITS: Final = 20_000
ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class Option:
    """What an item may be: its size, and what is lost."""

    n_bytes: int
    loss: float


def least_loss(items: Sequence[Sequence[Option]], budget: int) -> tuple[int, ...] | None:
    """The number of each item's option for the least sum of losses in ``budget`` bytes, None if none fits."""
    unit = max(ALIGNMENT, budget // N_UNITS)
    n_units = budget // unit
    if n_units < 0:
        return None
    # Least loss of the items so far, by the units that they may take at most.
    least = np.zeros(n_units + 1)
    chosen = []
    for options in items:
        losses = np.full((len(options), n_units + 1), np.inf)
        for number, option in enumerate(options):
            size = -(-option.n_bytes // unit)
            if size <= n_units:
                losses[number, size:] = least[: n_units + 1 - size] + option.loss
        chosen.append(losses.argmin(axis=0))
        least = losses.min(axis=0)
    if not np.isfinite(least[n_units]):
        return None
    numbers, left = [], n_units
    for options, best in zip(reversed(items), reversed(chosen), strict=True):
        numbers.append(int(best[left]))
        left -= -(-options[numbers[-1]].n_bytes // unit)
    return tuple(reversed(numbers))
