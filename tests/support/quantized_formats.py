"""AWQ, GPTQ and FP8 as these formats store a matrix, by rounding to nearest: no calibration, so no GPU.

Every function takes ``weight`` float32 [out, in] and gives the tensors that stand for it, by the suffix that
replaces "weight" in its name. FP8 codes come as uint8.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Tensors = dict[str, NDArray[np.generic]]

# AutoAWQ, awq/modules/linear/gemm.py: number i of a word is that of this column out of eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E4M3FN_MAX = 448.0


def awq(weight: Matrix, group_size: int = 128) -> Tensors:
    """4 bits in the layout "gemm": minimum and maximum of a group become 0 and 15."""
    n_out, n_in = weight.shape
    groups = weight.reshape(n_out, n_in // group_size, group_size)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    scales = np.maximum((high - low) / 15, 1e-5).astype(np.float16)
    zeros = np.clip(np.round(-low / scales.astype(np.float32)), 0, 15)
    numbers = np.round(groups / scales.astype(np.float32)[..., np.newaxis]) + zeros[..., np.newaxis]
    numbers = np.clip(numbers, 0, 15).reshape(n_out, n_in)
    return {
        "qweight": pack_columns(numbers.T, 4, AWQ_ORDER),
        "qzeros": pack_columns(zeros.T, 4, AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }


def gptq(
    weight: Matrix,
    bits: int = 4,
    group_size: int = 128,
    *,
    subtracted: int = 1,
    column_order: NDArray[np.intp] | None = None,
) -> Tensors:
    """4 or 8 bits, symmetric; ``subtracted`` is 1 in the format "gptq" and 0 in "gptq_v2".

    Groups are taken from the columns in ``column_order``, as with ``desc_act``.
    """
    n_out, n_in = weight.shape
    order = np.arange(n_in) if column_order is None else column_order
    g_idx = np.empty(n_in, np.int32)
    g_idx[order] = np.arange(n_in) // group_size
    zero = 2 ** (bits - 1)
    largest = np.abs(weight[:, order]).reshape(n_out, n_in // group_size, group_size).max(axis=2)
    scales = np.maximum(2 * largest / (2**bits - 1), 1e-5).astype(np.float16)
    numbers = np.round(weight / scales.astype(np.float32)[:, g_idx]) + zero
    numbers = np.clip(numbers, 0, 2**bits - 1)
    zeros = np.full((n_in // group_size, n_out), zero - subtracted)
    return {
        "qweight": np.ascontiguousarray(pack_columns(numbers, bits).T),
        "qzeros": pack_columns(zeros, bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": g_idx,
    }


def fp8(weight: Matrix, block: tuple[int, int] = (128, 128)) -> Tensors:
    """e4m3fn with a scale for each block; the largest of a block becomes 448."""
    n_out, n_in = weight.shape
    starts = [range(0, dim, size) for dim, size in zip(weight.shape, block, strict=True)]
    largest = np.array(
        [[np.abs(weight[i : i + block[0], j : j + block[1]]).max() for j in starts[1]] for i in starts[0]]
    )
    scales = np.maximum(largest / E4M3FN_MAX, 1e-12).astype(np.float32)
    each = np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)[:n_out, :n_in]
    return {"weight": to_e4m3fn(weight / each), "weight_scale_inv": scales}


def to_e4m3fn(values: Matrix) -> NDArray[np.uint8]:
    """The nearest code of each value."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, (codes & 7) / 8
    positive = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    nearest = np.searchsorted((positive[1:] + positive[:-1]) / 2, np.abs(values)).astype(np.uint8)
    return nearest | np.where(values < 0, np.uint8(0x80), np.uint8(0))


def pack_columns(
    numbers: NDArray[np.generic], bits: int, order: tuple[int, ...] | None = None
) -> NDArray[np.int32]:
    """Neighbouring columns side by side in words, the first one of ``order`` in the lowest bits."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.uint32)
    for place, column in enumerate(order or range(per_word)):
        words |= numbers[:, column::per_word].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)
