"""ggml's own (de)quantizers, called through ctypes, so that our blocks are llama-quantize's to the bit.

The calls release the GIL, so threads work side by side. Rows are independent of each other, so cutting a
tensor into chunks of rows changes nothing.
"""

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

LIBRARY_NAME: Final = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


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

    Blocks break when a weight or a block's scale overflows float16. ``importance``, float32 [n_per_row],
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
    blocks = np.empty((n_rows, row_size(qtype, n_per_row)), np.uint8)
    library = _library()
    if library.ggml_row_size(qtype, n_per_row) != blocks.shape[1]:
        raise RuntimeError(f"gguf and llama-cpp-python disagree about {qtype.name}: install both again")
    weights = None if importance is None else importance.ctypes.data
    n_bytes = library.ggml_quantize_chunk(
        qtype, rows.ctypes.data, blocks.ctypes.data, 0, n_rows, n_per_row, weights
    )
    if n_bytes != blocks.nbytes:
        raise RuntimeError(f"ggml wrote {n_bytes} bytes of {qtype.name}, not {blocks.nbytes}")
    return blocks if are_sound(blocks, qtype) else None


def dequantize_rows(blocks: NDArray[np.uint8], qtype: GGMLQuantizationType) -> NDArray[np.float32]:
    """The weights, float32 [n_rows, n_per_row], that ``blocks``, uint8 [n_rows, row_size], stand for."""
    n_rows, n_bytes = blocks.shape
    n_per_row = n_bytes // row_size(qtype, block_size(qtype)) * block_size(qtype)
    if blocks.dtype != np.uint8 or not blocks.flags.c_contiguous or row_size(qtype, n_per_row) != n_bytes:
        raise ValueError(f"cannot read {blocks.dtype} {blocks.shape} as {qtype.name}")
    if qtype == GGMLQuantizationType.F32:
        return blocks.view(np.float32)
    rows = np.empty((n_rows, n_per_row), np.float32)
    _library().ggml_get_type_traits(qtype).contents.to_float(blocks.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def are_sound(blocks: NDArray[np.uint8], qtype: GGMLQuantizationType) -> bool:
    """Whether no weight, and no scale of a block, is NaN or infinite."""
    return bool(_library().ggml_validate_row_data(qtype, blocks.ctypes.data, blocks.nbytes))


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def _library() -> ctypes.CDLL:
    """llama-cpp-python's ggml-base, loaded without loading the rest of llama.cpp."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError("llama-cpp-python is not installed")
    name = LIBRARY_NAME.get(sys.platform, "libggml-base.so")
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / name))

    library.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,  # type
        ctypes.c_void_p,  # const float * src
        ctypes.c_void_p,  # void * dst
        ctypes.c_int64,  # first element
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # elements a row
        ctypes.c_void_p,  # const float * imatrix
    )
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library
