"""llama.cpp's libraries as llama_cpp loaded them, and functions of theirs that it does not wrap.

Everybody takes them from here. A wheel holds copies of each library under several names: whoever opened one
by another name than llama.cpp's would get a second instance, which does not know the devices of the first.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

# When an assertion fails, ggml forks a debugger that prints the stack, and waits for it. When two of its
# threads fail at once, each fork holds a pipe open whose end the other waits for: the process never ends.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from llama_cpp import llama_cpp as lib

__all__ = ["FOLDER", "ggml_function", "lib"]

# The libraries' folder: ``LLAMA_CPP_LIB_PATH``, or that of the llama_cpp package.
FOLDER: Final = Path(lib._base_path).absolute()


def ggml_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of ggml that takes and gives such ctypes types; it releases the GIL.

    Raises:
        AttributeError: this build has no such function.
    """
    for library in _ggml_libraries():
        try:
            function = library[name]
        except AttributeError:
            continue
        function.restype, function.argtypes = result, arguments
        return function
    raise AttributeError(f"llama.cpp in {FOLDER} has no function {name}")


@cache
def _ggml_libraries() -> tuple[ctypes.CDLL, ...]:
    if sys.platform == "win32":  # a module is loaded once for each path, and found by it
        return tuple(ctypes.CDLL(str(FOLDER / f"{name}.dll")) for name in ("ggml-base", "ggml"))
    # Elsewhere a library's handle finds the functions of the libraries that it was linked to as well.
    return (ctypes.CDLL("ggml", handle=lib._lib._handle),)
