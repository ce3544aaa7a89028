"""llama.cpp's own quantization, as the second opinion."""

import ctypes
from pathlib import Path

import llama_cpp
from gguf import GGUFReader
from llama_cpp._logger import set_verbose

from acestep_gguf.names import LLAMA_FTYPE, Ftype


def llama_quantize(source: Path, target: Path, ftype: Ftype) -> Path:
    """``llama_model_quantize`` with llama-quantize's defaults."""
    set_verbose(False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = LLAMA_FTYPE[ftype]
    params.nthread = 2
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert not failed
    return target


def read_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a GGUF file."""
    tensors = GGUFReader(path).tensors
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in tensors}
