"""llama.cpp as a library: how it starts, logs and is interrupted, and how its objects are freed."""

import ctypes
import logging
import os
import threading
from collections import deque
from typing import Any, Final, Self

import llama_cpp

from acestep_gguf.errors import UsageError
from acestep_gguf.llama.library import FOLDER, ggml_function, lib

LOG_LEVEL_ERROR: Final = 4  # enum ggml_log_level
LOG_LEVEL_CONTINUE: Final = 5

LOGGER: Final = logging.getLogger("acestep_gguf.llama")


class Log:
    """Catches what llama.cpp logs, which would otherwise go to stderr, and keeps the last lines.

    ``LOGGER`` has all of them, for whoever wants to debug: what went wrong is in an exception, too.
    """

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=256)
        self._errors: deque[str] = deque(maxlen=4)
        self._level = 0
        self._unfinished = ""
        # ctypes does not keep the callback alive, this attribute does.
        self._callback = lib.llama_log_callback(self._write)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        self._level = level if level != LOG_LEVEL_CONTINUE else self._level
        self.lines.append(line)
        if self._level == LOG_LEVEL_ERROR and line.strip():
            self._errors.append(line.strip())
        if LOGGER.isEnabledFor(logging.DEBUG):
            *whole, self._unfinished = (self._unfinished + text.decode("utf-8", "replace")).split("\n")
            for written in whole:
                LOGGER.debug("%s", written)

    def clear(self) -> None:
        """Forget what was logged: what comes belongs to the next call."""
        self.lines.clear()
        self._errors.clear()

    def errors(self) -> str:
        """The last error lines since ``clear``, as one line."""
        return "; ".join(self._errors) or "it gave no reason"


_backend_count = ggml_function("ggml_backend_reg_count", ctypes.c_size_t)
_load_backends = ggml_function("ggml_backend_load_all_from_path", None, ctypes.c_char_p)

_log: Log | None = None
_backend_lock = threading.Lock()


def backend() -> Log:
    """Initialize llama.cpp once per process, and say what it logs."""
    global _log  # noqa: PLW0603 (llama.cpp's backend is as global)
    with _backend_lock:
        if _log is None:
            _log = Log()
            lib.llama_backend_init()
            # A build with GGML_BACKEND_DL has CPUs and GPUs in libraries of their own. llama.cpp by itself
            # looks for them beside the executable, which is Python's, and in the current folder.
            if not _backend_count():
                _load_backends(os.fsencode(FOLDER))
    return _log


def build_id() -> str:
    """What tells one build of llama.cpp on one kind of CPU from another: versions, features, files.

    Two builds may compute other numbers, or lay out their memory in another way.
    """
    backend()
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(FOLDER.glob("*"))]
    return f"{llama_cpp.__version__} {lib.llama_print_system_info().decode()} {files}"


class Interrupted(Exception):
    """A StopFlag ended a call; nothing that it computed is kept."""


class StopFlag:
    """A flag that llama.cpp reads while it computes; any thread may set it, and so may a signal handler.

    llama.cpp calls a function before each node of its graph, hundreds of times a token. One in Python would
    have to wait for other threads of Python each time. C's ``strlen`` does the same: it is 0, which is false,
    until the flag makes its string one byte long.
    """

    callback: Final = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)

    def __init__(self) -> None:
        self.text = ctypes.create_string_buffer(2)

    def set(self) -> None:
        """End the call that looks at this flag, and all after it."""
        self.text[0] = b"1"

    def check(self) -> None:
        """Raise Interrupted if the flag is set."""
        if self.text.value:
            raise Interrupted


class Handle:
    """A native object that is freed once."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free the native object; a second call does nothing."""
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if pointer is not None:
            self._free(pointer)

    def _free(self, pointer: Any) -> None:
        raise NotImplementedError

    @property
    def pointer(self) -> Any:
        """The native object.

        Raises:
            UsageError: closed.
        """
        if self._pointer is None:
            raise UsageError(f"this {type(self).__name__} is closed: make a new one.")
        return self._pointer
