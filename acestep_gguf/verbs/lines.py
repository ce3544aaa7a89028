"""Lines that a person types or a program pipes, and answers that Ctrl-C can stop."""

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from acestep_gguf.answer import Chunk
from acestep_gguf.errors import PromptError

PROMPT: Final = "> "
MAX_LINE_BYTES: Final = 4 * 2**20
SECONDS_BETWEEN_LOOKS: Final = 0.1


def is_terminal() -> bool:
    """Whether a person types and reads."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def typed_lines() -> Iterator[str]:
    """Lines that a person types, with line editing and history; Ctrl-C drops a line, Ctrl-D ends them.

    The handler of Ctrl-C that was there is in force except while somebody types.
    """
    with suppress(ImportError):  # it does not exist everywhere
        import readline  # noqa: F401, PLC0415 (input() uses it once it is there)
    while True:
        elsewhere = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            line = input(PROMPT)
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"error: the line is not in the terminal's encoding ({error.reason}).", file=sys.stderr)
            continue
        finally:
            signal.signal(signal.SIGINT, elsewhere)
        yield line


def piped_lines() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        PromptError: there is none, or a line is too long or not UTF-8.
    """
    if sys.stdin is None:
        raise PromptError("standard input is closed: give the questions there, one a line.")
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise PromptError(f"a line of standard input is longer than {MAX_LINE_BYTES >> 20} MiB.")
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"a line of standard input is not UTF-8 ({error.reason}).") from error


def from_a_thread(
    chunks: Iterator[Chunk], cancel: Callable[[], None], is_cancelled: Callable[[], bool]
) -> Generator[Chunk, None, None]:
    """The same chunks, written in a thread of their own: Python handles Ctrl-C in the main thread only, and
    not before a call of llama.cpp is over.

    Args:
        chunks: of an answer.
        cancel: ends it, if it has begun.
        is_cancelled: whether it is to end; it may have been too early for ``cancel``.
    """
    queue: SimpleQueue[Chunk | Exception | None] = SimpleQueue()

    def write() -> None:
        try:
            for chunk in chunks:
                queue.put(chunk)
            queue.put(None)
        except Exception as error:  # noqa: BLE001 (raised again below)
            queue.put(error)

    thread = Thread(target=write)
    thread.start()
    try:
        while True:
            try:
                item = queue.get(timeout=SECONDS_BETWEEN_LOOKS)
            except Empty:
                if is_cancelled():
                    cancel()
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        while thread.is_alive():
            cancel()
            thread.join(SECONDS_BETWEEN_LOOKS)
