"""llama.cpp's own quantization, as the second opinion."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf import GGUFReader
from llama_cpp._logger import set_verbose
from numpy.typing import NDArray

from acestep_gguf.bundle.names import LLAMA_FTYPE, DecoderFtype


def llama_quantize(
    source: Path,
    target: Path,
    ftype: DecoderFtype,
    *,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    overrides: Mapping[str, int | str] | None = None,
    tensor_types: Mapping[str, QType] | None = None,
    output_tensor_type: QType | None = None,
    token_embedding_type: QType | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
) -> Path:
    """``llama_model_quantize`` with llama-quantize's defaults, and what its options would set."""
    set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LLAMA_FTYPE[ftype]
    params.nthread = 2
    params.pure = pure
    params.allow_requantize = allow_requantize
    if output_tensor_type is not None:
        params.output_tensor_type = output_tensor_type
    if token_embedding_type is not None:
        params.token_embedding_type = token_embedding_type
    if tensor_types:
        # A structure of zeros ends each list.
        patterns = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
        for item, (pattern, qtype) in zip(patterns, tensor_types.items(), strict=False):
            item.pattern, item.type = pattern.encode(), qtype
        params.tt_overrides = patterns
    if imatrix:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for item, (name, values) in zip(entries, imatrix.items(), strict=False):
            item.name, item.size = name.encode(), values.size
            item.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if overrides:
        pairs = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()
        for item, (key, value) in zip(pairs, overrides.items(), strict=False):
            item.key = key.encode()
            if isinstance(value, str):
                item.tag, item.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
            else:
                item.tag, item.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        params.kv_overrides = pairs
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert not failed
    return target


def read_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a GGUF file."""
    tensors = GGUFReader(path).tensors
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in tensors}
