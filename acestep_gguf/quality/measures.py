"""How far one model's next-token predictions are from another's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two models at the same ``n_tokens`` positions: the sum of KL divergences in nats, and how often both
    would choose the same token.
    """

    n_tokens: int
    kl_divergence: float
    n_same_top_1: int


def agreement(best: Floats, other: Floats) -> Agreement:
    """Compare the logits of two models at the same positions, both float32 [n, n_vocab].

    Rows of the vocabulary that only one has are left out: they are padding.
    """
    n_vocab = min(best.shape[1], other.shape[1])
    log_p, log_q = log_probabilities(best[:, :n_vocab]), log_probabilities(other[:, :n_vocab])
    divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    same = np.argmax(log_p, axis=1) == np.argmax(log_q, axis=1)
    # Rounding can make the divergence of equal distributions slightly negative.
    return Agreement(len(best), float(np.maximum(divergence, 0.0).sum()), int(same.sum()))


def log_probabilities(logits: Floats) -> Doubles:
    """Logarithms of softmax, float64 of the same shape [n, n_vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def n_alike(one: Sequence[object], other: Sequence[object]) -> int:
    """Tokens, or characters, before the first difference."""
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other))
