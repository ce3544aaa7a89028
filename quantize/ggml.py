"""ggml's own (de)quantizers, called through ctypes, so that our blocks are llama-quantize's to the bit.

The calls release the GIL, so threads work side by side. Rows are independent of each other, so cutting a
tensor into chunks of rows changes nothing.
"""

import ctypes
from ctypes import POINTER, c_bool, c_int, c_int64, c_size_t, c_void_p
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from acestep_gguf.llama.library import ggml_function

# Without importance, ggml ends the process.
NEED_IMPORTANCE: Final = frozenset(
    {GGMLQuantizationType.IQ1_S, GGMLQuantizationType.IQ2_XXS, GGMLQuantizationType.IQ2_XS}
)
# Of these it looks for points on a grid, and ends the process where an overflow leaves none.
ON_A_GRID: Final = NEED_IMPORTANCE | {
    GGMLQuantizationType.IQ1_M,
    GGMLQuantizationType.IQ2_S,
    GGMLQuantizationType.IQ3_XXS,
    GGMLQuantizationType.IQ3_S,
}
# Of a weight, as of a scale in float16; and of its square times its importance, sums of which are squared.
MAX_ON_A_GRID: Final = 65504.0
MAX_WEIGHED_SQUARE: Final = 1e15


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("from_float_ref", c_void_p),
    )


_row_size = ggml_function("ggml_row_size", c_size_t, c_int, c_int64)
_quantize_chunk = ggml_function(
    "ggml_quantize_chunk",
    c_size_t,
    c_int,  # type
    c_void_p,  # const float * src
    c_void_p,  # void * dst
    c_int64,  # first element
    c_int64,  # rows
    c_int64,  # elements a row
    c_void_p,  # const float * imatrix
)
_validate_row_data = ggml_function("ggml_validate_row_data", c_bool, c_int, c_void_p, c_size_t)
_type_traits = ggml_function("ggml_get_type_traits", POINTER(_TypeTraits), c_int)


def block_size(qtype: GGMLQuantizationType) -> int:
    """Weights in one block of ``qtype``: a row's length must be a multiple of it."""
    n_weights: int = GGML_QUANT_SIZES[qtype][0]
    return n_weights


def row_size(qtype: GGMLQuantizationType, n_per_row: int) -> int:
    """Bytes of one row of ``n_per_row`` weights."""
    n_bytes: int = GGML_QUANT_SIZES[qtype][1]
    return n_per_row // block_size(qtype) * n_bytes


def quantize_rows(
    rows: NDArray[np.float32], qtype: GGMLQuantizationType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8] | None:
    """Quantize ``rows``, float32 [n_rows, n_per_row], to uint8 [n_rows, row_size]; None if blocks broke.

    Blocks break when a weight or a block's scale overflows float16, or its weighed square what ggml can
    compute with. ``importance``, float32 [n_per_row],
    weighs the errors of a row's weights; types of 8 and more bits do without.
    """
    n_rows, n_per_row = rows.shape
    if rows.dtype != np.float32 or not rows.flags.c_contiguous or n_per_row % block_size(qtype):
        raise ValueError(f"cannot quantize {rows.dtype} {rows.shape} to {qtype.name}")
    if importance is not None and (
        importance.dtype != np.float32
        or importance.shape != (n_per_row,)
        or not importance.flags.c_contiguous
    ):
        raise ValueError(f"cannot weigh rows of {n_per_row} by {importance.dtype} {importance.shape}")
    if importance is None and qtype in NEED_IMPORTANCE:
        raise ValueError(f"cannot quantize to {qtype.name} without importance")
    if qtype in ON_A_GRID and rows.size and not _fit_on_a_grid(rows, importance):
        return None
    blocks = np.empty((n_rows, row_size(qtype, n_per_row)), np.uint8)
    if _row_size(qtype, n_per_row) != blocks.shape[1]:
        raise RuntimeError(f"gguf and llama-cpp-python disagree about {qtype.name}: install both again")
    weights = None if importance is None else importance.ctypes.data
    n_bytes = _quantize_chunk(qtype, rows.ctypes.data, blocks.ctypes.data, 0, n_rows, n_per_row, weights)
    if n_bytes != blocks.nbytes:
        raise RuntimeError(f"ggml wrote {n_bytes} bytes of {qtype.name}, not {blocks.nbytes}")
    return blocks if are_sound(blocks, qtype) else None


def _fit_on_a_grid(rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> bool:
    largest = float(np.abs(rows).max())
    weight = 1.0 if importance is None else float(importance.max())
    return largest <= MAX_ON_A_GRID and weight * max(largest, 1.0) ** 2 <= MAX_WEIGHED_SQUARE


def dequantize_rows(blocks: NDArray[np.uint8], qtype: GGMLQuantizationType) -> NDArray[np.float32]:
    """The weights, float32 [n_rows, n_per_row], that ``blocks``, uint8 [n_rows, row_size], stand for."""
    n_rows, n_bytes = blocks.shape
    n_per_row = n_bytes // row_size(qtype, block_size(qtype)) * block_size(qtype)
    if blocks.dtype != np.uint8 or not blocks.flags.c_contiguous or row_size(qtype, n_per_row) != n_bytes:
        raise ValueError(f"cannot read {blocks.dtype} {blocks.shape} as {qtype.name}")
    if qtype == GGMLQuantizationType.F32:
        return blocks.view(np.float32)
    rows = np.empty((n_rows, n_per_row), np.float32)
    _type_traits(qtype).contents.to_float(blocks.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def are_sound(blocks: NDArray[np.uint8], qtype: GGMLQuantizationType) -> bool:
    """Whether no weight, and no scale of a block, is NaN or infinite."""
    return bool(_validate_row_data(qtype, blocks.ctypes.data, blocks.nbytes))
