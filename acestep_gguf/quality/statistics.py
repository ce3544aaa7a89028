"""Means and percentiles of what was measured at each token, with intervals that say how sure they are.

The tokens of an answer depend on one another, answers do not. So the intervals are those of a bootstrap over
answers (of a text, over its windows): whole answers are drawn, with replacement, as many as there are, and
the 2.5th and 97.5th percentile of what comes out are the ends. All candidates of a report get the same draws.
Of a handful of answers such intervals are too narrow, and of one there is none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

N_DRAWS: Final = 1000
SEED: Final = 1
ENDS: Final = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its 95 % interval, which are None where there was one answer only."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL divergences in nats a token: their mean, 90th and 99th percentile."""

    mean: Estimate
    p90: Estimate
    p99: Estimate


def divergence_of(answers: Sequence[npt.NDArray[Any]]) -> Divergence:
    """What ``kl_divergences`` gave for each answer, float64 [n_tokens]."""
    mean, p90, p99 = _estimates(answers, lambda values: [values.mean(), *np.percentile(values, (90, 99))])
    return Divergence(mean=mean, p90=p90, p99=p99)


def share_of(answers: Sequence[npt.NDArray[Any]]) -> Estimate:
    """Share of tokens where ``same_top_1`` is true, given for each answer as bool [n_tokens]."""
    return _estimates(answers, lambda values: [values.mean()])[0]


def perplexity_of(answers: Sequence[npt.NDArray[Any]]) -> Estimate:
    """Perplexity of tokens, of their log-probabilities for each answer, float64 [n_tokens]."""
    return _estimates(answers, lambda values: [np.exp(-values.mean())])[0]


def _estimates(
    answers: Sequence[npt.NDArray[Any]], statistics: Callable[[Doubles], Sequence[float]]
) -> list[Estimate]:
    values = np.concatenate(answers).astype(np.float64)
    found = statistics(values)
    if len(answers) < 2:
        return [Estimate(float(value), None, None) for value in found]
    n_tokens = np.array([len(answer) for answer in answers])
    random = np.random.default_rng(SEED)
    shares = np.full(len(answers), 1 / len(answers))
    drawn = [
        statistics(np.repeat(values, np.repeat(random.multinomial(len(answers), shares), n_tokens)))
        for _ in range(N_DRAWS)
    ]
    lows, highs = np.percentile(drawn, ENDS, axis=0)
    return [Estimate(*map(float, ends)) for ends in zip(found, lows, highs, strict=True)]
