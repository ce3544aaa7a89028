"""One answer at a time, and how long each part of it took."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from acestep_gguf.errors import UsageError


class Turnstile:
    """Lets one thread through at a time, and refuses a thread that would wait for itself.

    A turn belongs to the thread that took it, until another one takes it over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def is_mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._owner == threading.get_ident()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold it.

        Raises:
            UsageError: this thread holds it already.
        """
        if self.is_mine():
            raise UsageError("this thread has a stream open: exhaust or close it before the next call.")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def take_over(self) -> None:
        """Make this thread the owner of the turn, which another one may have had."""
        self._owner = threading.get_ident()


class Stopwatch:
    """Adds up the ``seconds`` spent inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._start

    def take(self) -> float:
        """Seconds so far; starts again from zero."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
