"""Devices that the installed llama.cpp can use, through ggml's device API, which llama_cpp does not wrap."""

import ctypes
import platform
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from typing import Final

from acestep_gguf.addresses import Address
from acestep_gguf.llama.backend import backend
from acestep_gguf.llama.library import ggml_function, lib
from acestep_gguf.llama.rpc.devices import connected_devices

INTEGRATED: Final = 2  # GGML_BACKEND_DEVICE_TYPE_IGPU
GPU_TYPES: Final = (1, INTEGRATED)  # the first is GGML_BACKEND_DEVICE_TYPE_GPU

_device_count = ggml_function("ggml_backend_dev_count", c_size_t)
_device_at = ggml_function("ggml_backend_dev_get", c_void_p, c_size_t)
device_type = ggml_function("ggml_backend_dev_type", c_int, c_void_p)
_device_description = ggml_function("ggml_backend_dev_description", c_char_p, c_void_p)
_device_memory = ggml_function(
    "ggml_backend_dev_memory", None, c_void_p, POINTER(c_size_t), POINTER(c_size_t)
)
_cpu_buffer_type = ggml_function("ggml_backend_cpu_buffer_type", c_void_p)


def all_devices() -> list[int]:
    """ggml's devices, CPUs among them, as pointers, which ``device_type`` takes."""
    return [_device_at(number) for number in range(_device_count())]


def gpu_devices() -> list[tuple[str, int]]:
    """Name and free bytes of each GPU, in llama.cpp's order; integrated ones only where there is no other.

    This starts the GPU's driver, which takes some of its memory.
    """
    gpus = []
    for device in _gpus():
        free, total = c_size_t(), c_size_t()
        _device_memory(device, free, total)
        gpus.append((_device_description(device).decode(), free.value))
    return gpus


def gpus_share_ram() -> bool:
    """Whether the memory of the GPUs is this machine's RAM, as an integrated one's and Apple's are."""
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"  # ggml does not say it of these
    return any(is_apple or device_type(device) == INTEGRATED for device in _gpus())


def gpus_and_servers(rpc: Sequence[Address]) -> "ctypes.Array[c_void_p]":
    """llama.cpp's array of this machine's GPUs and the devices of servers; it ends with an empty element.

    Raises:
        UsageError, RpcServerError: as ``connected_devices``.
    """
    devices = [*_gpus(), *connected_devices(rpc)]
    return (c_void_p * (len(devices) + 1))(*devices)


def _gpus() -> list[int]:
    backend()
    if not lib.llama_supports_gpu_offload():
        return []
    found: dict[int, list[int]] = {kind: [] for kind in GPU_TYPES}
    for device in all_devices():
        found.get(device_type(device), []).append(device)
    return next((gpus for gpus in found.values() if gpus), [])


class _Override(ctypes.Structure):
    """``struct llama_model_tensor_buft_override`` of llama.h."""

    _fields_ = (("pattern", c_char_p), ("buft", c_void_p))


def cpu_overrides(patterns: Sequence[str]) -> "ctypes.Array[_Override]":
    """llama.cpp's array that keeps tensors with such names in RAM; it ends with an empty element."""
    in_ram = _cpu_buffer_type()
    overrides = [_Override(pattern.encode(), in_ram) for pattern in patterns]
    return (_Override * (len(patterns) + 1))(*overrides, _Override(None, None))
