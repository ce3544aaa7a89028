"""Devices of RPC servers as llama.cpp takes them, and what is said when one is lost."""

import ctypes
import os
from collections.abc import Sequence
from ctypes import c_char_p, c_size_t, c_void_p
from typing import Final

from acestep_gguf.addresses import Address
from acestep_gguf.errors import RpcServerError
from acestep_gguf.llama.library import ggml_function
from acestep_gguf.llama.rpc.backend import rpc_function
from acestep_gguf.llama.rpc.handshake import RemoteDevice, ask_server

STDERR: Final = 2
LOST: Final = b"error: an RPC server was lost, and llama.cpp cannot go on without it: start both again.\n"

_device_count = ggml_function("ggml_backend_reg_dev_count", c_size_t, c_void_p)
_device_at = ggml_function("ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)
_AbortCallback = ctypes.CFUNCTYPE(None, c_char_p)
_on_abort = ggml_function("ggml_set_abort_callback", c_void_p, _AbortCallback)


def remote_devices(addresses: Sequence[Address]) -> list[RemoteDevice]:
    """The devices of all servers, and what is free of each.

    Raises:
        UsageError: llama.cpp was built without RPC.
        RpcServerError: as ``ask_server``.
    """
    rpc_function("ggml_backend_rpc_add_server", c_void_p, c_char_p)
    return [device for address in addresses for device in ask_server(address)]


def connected_devices(addresses: Sequence[Address]) -> list[int]:
    """ggml's devices of all servers, in the order of ``remote_devices``.

    From here on the process ends with a sentence if a server is lost: llama.cpp would abort it, and nothing
    can be done about that.

    Raises:
        UsageError, RpcServerError: as ``remote_devices``.
    """
    add_server = rpc_function("ggml_backend_rpc_add_server", c_void_p, c_char_p)
    found = []
    _on_abort(_ended)
    for address in addresses:
        devices = ask_server(address)
        # By its number: llama.cpp shall reach the server that was asked, and not wait for a name.
        server = add_server(str(address.numeric()).encode())
        if not server or _device_count(server) != len(devices):
            raise RpcServerError(
                f"the RPC server {address} has other devices than before: start this process again."
            )
        found += [_device_at(server, number) for number in range(len(devices))]
    return found


def _end(message: bytes) -> None:
    """What ggml calls in the place of printing ``message``, before it aborts the process."""
    if b"ggml-rpc" in message:
        os.write(STDERR, LOST)
        os._exit(1)
    os.write(STDERR, message + b"\n")


_ended: Final = _AbortCallback(_end)
