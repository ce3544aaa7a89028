"""How far one model's next-token predictions are from another's, token by token."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def kl_divergences(best: Floats, other: Floats) -> Doubles:
    """KL divergence of the prediction of ``best`` from that of ``other`` at each position, in nats.

    Args:
        best: logits, float32 [n, n_vocab].
        other: logits of another model at the same positions. Rows of the vocabulary that only one of them
            has are left out: they are padding.

    Returns:
        float64 [n], none negative.
    """
    best, other = _same_vocabulary(best, other)
    log_p, log_q = log_probabilities(best), log_probabilities(other)
    divergences: Doubles = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    # Rounding can make the divergence of equal distributions slightly negative.
    return np.asarray(np.maximum(divergences, 0.0))


def same_top_1(best: Floats, other: Floats) -> Bools:
    """Whether both would choose the same token at each position: bool [n] of logits as ``kl_divergences``."""
    best, other = _same_vocabulary(best, other)
    return np.asarray(np.argmax(best, axis=1) == np.argmax(other, axis=1))


def token_log_probabilities(logits: Floats, tokens: Sequence[int] | npt.NDArray[np.int64]) -> Doubles:
    """Logarithm of the probability of each of ``tokens``: float64 [n] of logits [n, n_vocab]."""
    return np.asarray(log_probabilities(logits)[np.arange(len(tokens)), np.asarray(tokens)])


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


def _same_vocabulary(best: Floats, other: Floats) -> tuple[Floats, Floats]:
    n_vocab = min(best.shape[1], other.shape[1])
    return best[:, :n_vocab], other[:, :n_vocab]
