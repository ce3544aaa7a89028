"""ggml's RPC server, which lends this machine's memory and processors, and lends no more than it may.

ggml's own offers all RAM that there is, and has no limit. A limit is set here by taking the places of three
of ggml's functions, in its tables of functions (ggml-backend-impl.h).
"""

import ctypes
import signal
import socket
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_size_t, c_void_p
from typing import Any, Final

from acestep_gguf.addresses import Address, is_loopback, reason
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.devices import GPU_TYPES, all_devices, device_type
from acestep_gguf.llama.library import ggml_function
from acestep_gguf.llama.rpc.backend import rpc_function
from acestep_gguf.sizes import show_size

CPU_TYPE: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU

# Places in the tables of a device, a type of buffers and a buffer; behind the last, its type, context, size.
GET_MEMORY: Final = 2
ALLOC_BUFFER: Final = 1
FREE_BUFFER: Final = 0
BUFFER_SIZE: Final = 13

_GetMemory = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_size_t), POINTER(c_size_t))
_AllocBuffer = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t)
_FreeBuffer = ctypes.CFUNCTYPE(None, c_void_p)

_device_name = ggml_function("ggml_backend_dev_name", c_char_p, c_void_p)
_buffer_type = ggml_function("ggml_backend_dev_buffer_type", c_void_p, c_void_p)


def serve_devices(
    address: Address,
    *,
    memory: int,
    gpu_reserve: int,
    n_threads: int,
    devices: Sequence[str] = (),
    insecure: bool = False,
    show: Callable[[str], None] = print,
) -> None:
    """Serve one client after the other, until a signal ends the process.

    Args:
        address: to listen on.
        memory: bytes of RAM that may be lent.
        gpu_reserve: bytes of each GPU that are not.
        n_threads: that compute on the CPU.
        devices: ggml's names of those that are lent; by default the GPUs, or the CPU if there is none.
        insecure: lend them to everybody who reaches an address that is not this machine's own.
        show: gets a line for each device, and for each buffer of RAM that is granted, refused or freed.

    Raises:
        UsageError: the address cannot be listened on, or everybody could; there is no such device; llama.cpp
            was built without RPC.
    """
    if not (is_loopback(address.host) or insecure):
        raise UsageError(
            f"everybody who reaches {address.host} could use this machine's memory, and read what is there: "
            "listen on 127.0.0.1 and let clients come through a tunnel, such as `ssh -L`, or allow it with "
            "insecure=True.",
            settings=["insecure"],
        )
    start = rpc_function(
        "ggml_backend_rpc_start_server", None, c_char_p, c_char_p, c_size_t, c_size_t, POINTER(c_void_p)
    )
    pointers = _chosen(devices)
    limits = [
        _Ram(pointer, memory, show) if device_type(pointer) == CPU_TYPE else _Gpu(pointer, gpu_reserve)
        for pointer in pointers
    ]
    endpoint = _free(address)
    for pointer, limit in zip(pointers, limits, strict=True):
        show(f"{_device_name(pointer).decode()} with {show_size(limit.free())} for {endpoint}")
    for number in (signal.SIGINT, signal.SIGTERM):  # Python would wait for ggml's call, which never ends
        signal.signal(number, signal.SIG_DFL)
    start(str(endpoint).encode(), None, n_threads, len(pointers), (c_void_p * len(pointers))(*pointers))
    raise UsageError(f"{endpoint} cannot be listened on: give another port.")


def _chosen(names: Sequence[str]) -> list[int]:
    known = {_device_name(device).decode(): device for device in all_devices()}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no device {unknown[0]}: choose from {', '.join(known)}.")
    gpus = [device for device in known.values() if device_type(device) in GPU_TYPES]
    cpus = [device for device in known.values() if device_type(device) == CPU_TYPE]
    return [known[name] for name in names] or gpus or cpus


def _free(address: Address) -> Address:
    """The address by its number, as ggml wants it; that it can be used is tried, for the reason."""
    try:
        numeric = address.numeric()
        with socket.create_server(numeric):
            return numeric
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"{address} cannot be listened on ({reason(error)}): give another host or port.",
            settings=["host", "port"],
        ) from error


class _Limit:
    """A device that says that it has less memory than it has."""

    def __init__(self, device: int) -> None:
        table = _table(device)
        self._device = device
        self._own_memory = _GetMemory(table[GET_MEMORY])
        self._get_memory = _GetMemory(self._tell)  # kept: ggml calls it
        table[GET_MEMORY] = _address(self._get_memory)

    def free(self) -> int:
        """Bytes that may be lent yet."""
        raise NotImplementedError

    def total(self) -> int:
        """Bytes that may be lent in all."""
        raise NotImplementedError

    def _tell(self, _device: int, free: Any, total: Any) -> None:
        free[0], total[0] = self.free(), self.total()


class _Gpu(_Limit):
    """A GPU: its driver and its kernels need memory beside the buffers. It refuses more by itself."""

    def __init__(self, device: int, reserve: int) -> None:
        self._reserve = reserve
        super().__init__(device)

    def free(self) -> int:
        return max(0, self._measured()[0] - self._reserve)

    def total(self) -> int:
        return max(0, self._measured()[1] - self._reserve)

    def _measured(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self._own_memory(self._device, free, total)
        return free.value, total.value


class _Ram(_Limit):
    """RAM, of which buffers are granted up to a limit."""

    def __init__(self, device: int, limit: int, show: Callable[[str], None]) -> None:
        super().__init__(device)
        self._limit, self._held, self._show = limit, 0, show
        self._own_free: dict[int, Any] = {}
        table = _table(_buffer_type(device))
        self._own_alloc = _AllocBuffer(table[ALLOC_BUFFER])
        self._alloc_buffer, self._free_buffer = _AllocBuffer(self._alloc), _FreeBuffer(self._give_back)
        table[ALLOC_BUFFER] = _address(self._alloc_buffer)

    def free(self) -> int:
        return self._limit - self._held

    def total(self) -> int:
        return self._limit

    def _alloc(self, buffer_type: int, n_bytes: int) -> int | None:
        if n_bytes > self.free():
            self._show(f"refused {n_bytes} bytes, {self.free()} are left")
            return None
        buffer: int | None = self._own_alloc(buffer_type, n_bytes)
        if buffer is None:
            self._show(f"refused {n_bytes} bytes, the system has no more")
            return None
        table = _table(buffer)
        self._held += table[BUFFER_SIZE]
        self._own_free[buffer] = _FreeBuffer(table[FREE_BUFFER])
        table[FREE_BUFFER] = _address(self._free_buffer)
        self._show(f"granted {n_bytes} bytes, {self.free()} are left")
        return buffer

    def _give_back(self, buffer: int) -> None:
        n_bytes = _table(buffer)[BUFFER_SIZE]
        self._own_free.pop(buffer)(buffer)
        self._held -= n_bytes
        self._show(f"freed {n_bytes} bytes, {self.free()} are left")


def _table(pointer: int) -> Any:
    """Functions of a native object, and what is behind them, as addresses and numbers."""
    return (c_size_t * (BUFFER_SIZE + 1)).from_address(pointer)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, c_void_p).value
