"""GPUs that the installed llama.cpp can use, through ggml's device API, which llama_cpp does not wrap."""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import llama_cpp
from llama_cpp import llama_cpp as lib

GPU_TYPES: Final = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
LIBRARY_SUFFIX: Final = {"darwin": ".dylib", "win32": ".dll"}


def gpu_devices() -> list[tuple[str, int]]:
    """Name and free bytes of each GPU, in llama.cpp's order; integrated ones only where there is no other.

    This starts the GPU's driver, which takes some of its memory.
    """
    if not lib.llama_supports_gpu_offload():
        return []
    ggml = _library("ggml-base")
    registry = _library("ggml")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = (ctypes.c_size_t,)
    ggml.ggml_backend_dev_type.argtypes = (ctypes.c_void_p,)
    ggml.ggml_backend_dev_description.argtypes = (ctypes.c_void_p,)
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_memory.argtypes = (ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2)
    ggml.ggml_backend_dev_memory.restype = None
    found: dict[int, list[tuple[str, int]]] = {kind: [] for kind in GPU_TYPES}
    for index in range(registry.ggml_backend_dev_count()):
        device = registry.ggml_backend_dev_get(index)
        kind = ggml.ggml_backend_dev_type(device)
        if kind in found:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found[kind].append((ggml.ggml_backend_dev_description(device).decode(), free.value))
    return next((gpus for gpus in found.values() if gpus), [])


class _Override(ctypes.Structure):
    """``struct llama_model_tensor_buft_override`` of llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def cpu_overrides(patterns: Sequence[str]) -> "ctypes.Array[_Override]":
    """llama.cpp's array that keeps tensors with such names in RAM; it ends with an empty element."""
    ggml = _library("ggml-base")
    ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    in_ram = ggml.ggml_backend_cpu_buffer_type()
    overrides = [_Override(pattern.encode(), in_ram) for pattern in patterns]
    return (_Override * (len(patterns) + 1))(*overrides, _Override(None, None))


def _library(name: str) -> ctypes.CDLL:
    suffix = LIBRARY_SUFFIX.get(sys.platform, ".so")
    prefix = "" if sys.platform == "win32" else "lib"
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"{prefix}{name}{suffix}"))
