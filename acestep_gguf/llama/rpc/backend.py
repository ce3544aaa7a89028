"""ggml's RPC backend, which llama.cpp's libraries may have been built without."""

import ctypes
import os
import sys
from ctypes import c_char_p, c_void_p
from typing import Any, Final

from acestep_gguf.errors import UsageError
from acestep_gguf.llama.backend import backend
from acestep_gguf.llama.library import FOLDER, ggml_function
from acestep_gguf.llama.rebuild import rebuild_command

LIBRARY: Final = "ggml-rpc.dll" if sys.platform == "win32" else "libggml-rpc.so"

_registry_by_name = ggml_function("ggml_backend_reg_by_name", c_void_p, c_char_p)
_load = ggml_function("ggml_backend_load", c_void_p, c_char_p)
_address_of = ggml_function("ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)


def rpc_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of the backend that takes and gives such ctypes types; it releases the GIL.

    Raises:
        UsageError: llama.cpp was built without the backend.
    """
    backend()
    registry = _registry_by_name(b"RPC")
    if not registry and (FOLDER / LIBRARY).exists():  # built for itself
        registry = _load(os.fsencode(FOLDER / LIBRARY))
    address = _address_of(registry, name.encode()) if registry else None
    if not address:
        raise UsageError(
            f"rpc cannot be used: this llama.cpp was built without it. {rebuild_command('-DGGML_RPC=on')} "
            "builds it, and so does `make libllama` (docs/scale.md).",
            settings=["rpc"],
        )
    return ctypes.CFUNCTYPE(result, *arguments)(address)
