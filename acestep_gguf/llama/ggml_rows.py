"""Rows of numbers between float32 and ggml's types, by ggml's own functions."""

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.library import ggml_function

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

F32: Final = 0

_ToFloat = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float_ref", c_void_p),
    )


def row_bytes(tensor_type: int, n: int) -> int:
    """Bytes of ``n`` numbers of a type (enum ggml_type).

    Raises:
        DecodeError: they do not fill whole blocks.
    """
    traits = _traits(tensor_type)
    if n % traits.blck_size:
        raise DecodeError(f"rows of {n} numbers do not fill blocks of {traits.blck_size}.")
    return n // int(traits.blck_size) * int(traits.type_size)


def to_floats(rows: UInt8Array, tensor_type: int, n: int) -> FloatArray:
    """Rows uint8 [n_rows, row_bytes] of ``n`` numbers each as float32 [n_rows, n]."""
    rows = np.ascontiguousarray(rows)
    if tensor_type == F32:
        return rows.view("<f4")
    floats = np.empty((len(rows), n), np.float32)
    convert = _function(_traits(tensor_type).to_float, tensor_type)
    convert(rows.ctypes.data, floats.ctypes.data, floats.size)
    return floats


def from_floats(floats: FloatArray, tensor_type: int) -> UInt8Array:
    """The reverse, rounded as ggml rounds when it stores keys and values."""
    floats = np.ascontiguousarray(floats, np.float32)
    if tensor_type == F32:
        return floats.view(np.uint8)
    n_rows, n = floats.shape
    rows = np.empty((n_rows, row_bytes(tensor_type, n)), np.uint8)
    convert = _function(_traits(tensor_type).from_float_ref, tensor_type)
    convert(floats.ctypes.data, rows.ctypes.data, floats.size)
    return rows


def _traits(tensor_type: int) -> _TypeTraits:
    traits_of = ggml_function("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), c_int)
    traits: _TypeTraits = traits_of(tensor_type).contents
    return traits


def _function(address: int | None, tensor_type: int) -> "ctypes._FuncPointer":
    if not address:
        raise DecodeError(f"ggml does not convert type {tensor_type}.")
    return _ToFloat(address)
