"""Position embeddings for another picture size, as in transformers' ``interpolate_pos_encoding``."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

# torch's bicubic, https://en.wikipedia.org/wiki/Bicubic_interpolation#Bicubic_convolution_algorithm
CUBIC_A = -0.75


def interpolate_positions(table: NDArray[np.float32], n_side: int) -> NDArray[np.float32]:
    """Resize ``table``, float32 [old side², n_embd] with or without CLS before it, to [n_side², n_embd].

    The same as torch's ``interpolate(mode="bicubic", align_corners=False)`` over the grid of patches.
    """
    n_embd = table.shape[1]
    old_side = isqrt(len(table))
    n_class = len(table) - old_side**2
    if old_side == n_side:
        return table
    grid = table[n_class:].reshape(old_side, old_side, n_embd)
    weights = cubic_weights(old_side, n_side)
    resized = np.einsum("yh,xw,hwc->yxc", weights, weights, grid, optimize=True)
    return np.concatenate([table[:n_class], resized.reshape(n_side**2, n_embd)]).astype(np.float32)


def cubic_weights(n_in: int, n_out: int) -> NDArray[np.float64]:
    """What each of ``n_in`` samples adds to each of ``n_out``: float64 [n_out, n_in], half-pixel centers."""
    centers = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    first = np.floor(centers).astype(int) - 1
    weights = np.zeros((n_out, n_in))
    for tap in range(4):
        sample = first + tap
        # Samples beyond the edge repeat the edge's.
        np.add.at(
            weights, (np.arange(n_out), np.clip(sample, 0, n_in - 1)), _cubic_kernel(np.abs(centers - sample))
        )
    return weights


def _cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = ((CUBIC_A * distance - 5 * CUBIC_A) * distance + 8 * CUBIC_A) * distance - 4 * CUBIC_A
    return np.where(distance <= 1, near, far)
