"""Log-probabilities in 16 bits, as llama-perplexity keeps those of its base (``--kl-divergence-base``).

Each position has a scale of its own: from its largest logit down to 16 below it, in 65,535 steps. By the same
float32 operations, so that figures which are measured against these are llama-perplexity's.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.quality.measures import Bools, Doubles, Floats

RANGE: Final = np.float32(16)  # from the largest logit, in nats
N_STEPS: Final = np.float32(65535)
LEAST: Final = np.float32(-16)  # log-probabilities from here down count for nothing in a divergence


@dataclass(frozen=True, slots=True)
class RoundedLogProbabilities:
    """Log-probabilities at ``n`` positions: ``scale`` * ``steps`` + ``least``.

    ``steps`` are uint16 [n, n_vocab], ``scale`` and ``least`` float32 [n, 1].
    """

    steps: npt.NDArray[np.uint16]
    scale: Floats
    least: Floats

    @classmethod
    def of(cls, logits: Floats) -> Self:
        """Those of logits, float32 [n, n_vocab]."""
        largest = logits.max(axis=1, keepdims=True)
        smallest = np.maximum(logits.min(axis=1, keepdims=True), largest - RANGE)
        scale = (largest - smallest) / N_STEPS
        with np.errstate(divide="ignore", invalid="ignore"):  # where all logits are equal
            steps = np.rint((1 / scale) * (logits - smallest))
        steps = np.where((logits > smallest) & (scale > 0), steps, 0).astype(np.uint16)
        return cls(steps, scale, smallest - largest - _log_sum_exp(logits, largest))

    def values(self) -> Floats:
        """As float32 [n, n_vocab]."""
        return self.scale * self.steps + self.least

    def of_tokens(self, tokens: npt.NDArray[np.int64]) -> Doubles:
        """Those of a token at each position, float64 [n]."""
        return self.values()[np.arange(len(tokens)), tokens].astype(np.float64)

    def kl_divergences(self, logits: Floats) -> Doubles:
        """KL divergence from the prediction of another model's ``logits``, in nats: float64 [n].

        Rounding can make it slightly negative.
        """
        largest = logits.max(axis=1, keepdims=True)
        others = logits.astype(np.float64) - (largest + _log_sum_exp(logits, largest))
        values = self.values()
        terms = np.exp(values) * (values - others)
        return np.asarray(np.where(values > LEAST, terms, 0).sum(axis=1))

    def same_top_1(self, logits: Floats) -> Bools:
        """Whether another model's ``logits`` choose the same token, the first of equals: bool [n]."""
        return np.asarray(self.steps.argmax(axis=1) == logits.argmax(axis=1))


def _log_sum_exp(logits: Floats, largest: Floats) -> Floats:
    """Of ``logits`` less ``largest``, float32 [n, 1]."""
    sums = np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(np.log(sums), np.float32)
