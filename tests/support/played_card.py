"""A GPU that the CPU plays: ggml's CPU device once more, with another type, name and memory.

It is registered with llama.cpp for good, so only child processes of tests call ``register_card``.
"""

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_int, c_size_t, c_void_p
from typing import Any

from llama_cpp import llama_cpp as lib

CPU, GPU = 0, 1  # enum ggml_backend_dev_type
DeviceFunctions = c_void_p * 15  # struct ggml_backend_device_i: get_name, get_description, …
GetMemory = CFUNCTYPE(None, c_void_p, POINTER(c_size_t), POINTER(c_size_t))

_kept: list[Any] = []  # what llama.cpp points to


class Device(ctypes.Structure):
    """``struct ggml_backend_device`` of ggml-backend-impl.h."""

    _fields_ = (("functions", DeviceFunctions), ("registry", c_void_p), ("context", c_void_p))


class Registry(ctypes.Structure):
    """``struct ggml_backend_reg`` of ggml-backend-impl.h: who has devices."""

    _fields_ = (
        ("api_version", c_int),
        ("get_name", c_void_p),
        ("get_device_count", c_void_p),
        ("get_device", c_void_p),
        ("get_proc_address", c_void_p),
        ("context", c_void_p),
    )


def register_card(description: str, free: int) -> None:
    """Give llama.cpp a GPU of this description that claims ``free`` bytes of memory."""
    ggml = ctypes.CDLL("ggml", handle=lib._lib._handle)  # the instance that llama.cpp uses
    ggml.ggml_backend_dev_by_type.restype = c_void_p
    device = Device.from_buffer_copy(Device.from_address(ggml.ggml_backend_dev_by_type(CPU)))
    registry = Registry.from_buffer_copy(Registry.from_address(device.registry))
    name, text = (ctypes.create_string_buffer(words.encode()) for words in ("Card", description))

    def get_memory(_device: int, free_out: Any, total_out: Any) -> None:
        free_out[0] = total_out[0] = free

    device.functions[0] = _pointer(CFUNCTYPE(c_void_p, c_void_p), lambda _: ctypes.addressof(name))
    device.functions[1] = _pointer(CFUNCTYPE(c_void_p, c_void_p), lambda _: ctypes.addressof(text))
    device.functions[2] = _pointer(GetMemory, get_memory)
    device.functions[3] = _pointer(CFUNCTYPE(c_int, c_void_p), lambda _: GPU)
    device.registry = ctypes.addressof(registry)
    registry.get_name = _pointer(CFUNCTYPE(c_void_p, c_void_p), lambda _: ctypes.addressof(name))
    registry.get_device_count = _pointer(CFUNCTYPE(c_size_t, c_void_p), lambda _: 1)
    registry.get_device = _pointer(
        CFUNCTYPE(c_void_p, c_void_p, c_size_t), lambda _registry, _index: ctypes.addressof(device)
    )
    _kept.extend([name, text, device, registry])
    ggml.ggml_backend_register.argtypes = (c_void_p,)
    ggml.ggml_backend_register(ctypes.addressof(registry))


def _pointer(kind: Callable[[Any], Any], function: Callable[..., Any]) -> int | None:
    callback = kind(function)
    _kept.append(callback)
    return ctypes.cast(callback, c_void_p).value
