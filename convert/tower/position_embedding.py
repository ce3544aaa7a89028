"""Position embeddings for another picture size: interpolated, or rows of the table."""

from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

# torch's bicubic, https://en.wikipedia.org/wiki/Bicubic_interpolation#Bicubic_convolution_algorithm
CUBIC_A = -0.75


def positions_of_size(table: NDArray[np.float32], n_side: int, *, fractional: bool) -> NDArray[np.float32]:
    """Positions of a picture of ``n_side`` patches a side, float32 [n_side² or one more for CLS, n_embd]."""
    if not fractional:
        return interpolate_positions(table, n_side)
    n_table = isqrt(len(table))
    buckets = fractional_buckets(n_table, n_side)
    positions: NDArray[np.float32] = table[(buckets[:, np.newaxis] * n_table + buckets).ravel()]
    return positions


def fractional_buckets(n_table: int, n_side: int) -> NDArray[np.intp]:
    """Which of ``n_table`` positions along a side each of ``n_side`` patches takes, [n_side].

    The float32 numbers of ``Idefics3VisionEmbeddings`` with torch's scalar arithmetic. For some ``n_table``,
    none of them published, torch rounds in another way on each kind of CPU.
    """
    step = 1 / n_table
    ends = (step + np.arange(ceil((1 - step) / step)) * step).astype(np.float32)
    places = np.arange(n_side, dtype=np.float32) * (np.float32(1) / np.float32(n_side))
    buckets: NDArray[np.intp] = np.searchsorted(ends, np.minimum(places, np.float32(1 - 1e-6)), side="right")
    return buckets


def interpolate_positions(table: NDArray[np.float32], n_side: int) -> NDArray[np.float32]:
    """As in transformers' ``interpolate_pos_encoding``.

    Resize ``table``, float32 [old side², n_embd] with or without CLS before it, to [n_side², n_embd].

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
