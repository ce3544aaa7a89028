"""A question from standard input, what goes to standard output, and how Ctrl-C ends it."""

import io
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, BinaryIO, Final

from acestep_gguf.errors import PromptError

if TYPE_CHECKING:
    from acestep_gguf.answer import Answer, Chunk

MAX_STDIN_BYTES: Final = 4 * 2**20
SECONDS_BETWEEN_LOOKS: Final = 0.1
# Control characters but tab and new line, which can make a terminal do anything, and what is shown for them.
CONTROLS: Final = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def is_terminal() -> bool:
    """Whether a person types and reads."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def read_stdin() -> str:
    """The question on standard input.

    Raises:
        PromptError: there is no standard input, or it is too long or not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise PromptError("there is no question: give it after the bundle, or on standard input.")
    return _question_of(sys.stdin.buffer, "the question on standard input")


def read_question(path: Path) -> str:
    """The question in a file.

    Raises:
        PromptError: it cannot be read, or is too long or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            return _question_of(file, f"the question in {path}")
    except OSError as error:
        raise PromptError(
            f"{path} cannot be read ({error.strerror}): give a file with a question."
        ) from error


def _question_of(file: BinaryIO, name: str) -> str:
    data = file.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise PromptError(f"{name} is longer than {MAX_STDIN_BYTES >> 20} MiB.")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 ({error.reason}).") from error


def has_unread_input() -> bool:
    """Whether something that was piped or redirected to this process waits to be read.

    It is left there: it may be meant for another program, such as the shell whose `while read` loop this is.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return False
    with suppress(ImportError, OSError):  # other systems; a device or a socket that cannot tell
        import fcntl
        import struct
        import termios

        (n_bytes,) = struct.unpack("i", fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, bytes(4)))
        return bool(n_bytes)
    return False


def open_standard_streams() -> None:
    """Make writing to standard output and standard error safe, whatever they are.

    The number of a closed one would go to the next file that is opened, and libraries would write into it. A
    character that the terminal has not becomes another one, and a path that is not UTF-8 stays what it is.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            assert null == number  # noqa: S101
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def show_llama_log() -> None:
    """Print what llama.cpp logs on standard error."""
    import logging

    from acestep_gguf.llama.backend import LOGGER

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(record.getMessage())

    handler = logging.StreamHandler()
    handler.setFormatter(Printable())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)


def end_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end the process as it would a program in C.

    Python's own handler would wait for the end of a call of llama.cpp, which can take minutes. Where Ctrl-C
    is ignored, as in the background of a script, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def cleaning_up_on_ctrl_c(message: str) -> Iterator[None]:
    """Let Ctrl-C unwind what is inside, so that nothing half done is left behind, and end the process then.

    Args:
        message: for standard error.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(message, file=sys.stderr)
        # By the signal, not with a number: a loop in a shell ends, too, instead of going on.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def end_on_ctrl_c(last_words: Callable[[], None]) -> None:
    """At Ctrl-C, call ``last_words`` in a thread, and end as fast as after ``end_at_once_on_ctrl_c``.

    Python's handlers wait for the main thread, but the number of a signal is written to a pipe at once.
    """
    import ctypes

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while os.read(reader, 1) != bytes([signal.SIGINT]):
            pass
        last_words()
        # By the signal, as above. signal.signal() refuses to do this in a thread.
        ctypes.pythonapi.PyOS_setsig(signal.SIGINT, ctypes.c_void_p(signal.SIG_DFL))
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=wait, daemon=True).start()


def from_a_thread(
    chunks: "Iterator[Chunk]", cancel: Callable[[], None], is_cancelled: Callable[[], bool]
) -> "Generator[Chunk, None, None]":
    """The same chunks, written in a thread of their own: Python handles Ctrl-C in the main thread only, and
    not before a call of llama.cpp is over.

    Args:
        chunks: of an answer.
        cancel: ends it, if it has begun.
        is_cancelled: whether it is to end; it may have been too early for ``cancel``.
    """
    from queue import Empty, SimpleQueue

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


def print_chunks(chunks: "Iterable[Chunk]") -> "Answer":
    """Print an answer as it is written."""
    for chunk in chunks:
        print(for_stdout(chunk.text), end="", flush=True)
        answer = chunk.answer
    print()
    assert answer is not None  # noqa: S101 (so it is in the last chunk)
    return answer


def statistics(answer: "Answer") -> str:
    """Counts, seconds and speeds of an answer, on one line."""
    usage, timings = answer.usage, answer.timings
    drawn = "" if answer.seed is None else f" | seed {answer.seed}"
    of_prompt = f"{usage.image_tokens} of pictures, {usage.cached_tokens} known from before"
    return (
        f"[load {timings.load_s:.2f} s | pictures {timings.image_s:.2f} s | "
        f"prompt {usage.prompt_tokens} tokens ({of_prompt}) {timings.prefill_s:.2f} s"
        f"{_speed(timings.prefill_tokens_per_s)} | "
        f"answer {usage.completion_tokens} tokens {timings.decode_s:.2f} s"
        f"{_speed(timings.decode_tokens_per_s)}{drawn} | {answer.finish_reason}]"
    )


def _speed(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f", {tokens_per_s:.1f} tokens/s"


def printable(text: object) -> str:
    """``text`` on one line and without control characters: a stranger may have written it."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def for_stdout(text: str) -> str:
    """``text`` as it is, but at a terminal without control characters other than tab and new line."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def json_text(value: object) -> str:
    """``value`` as JSON for standard output, over several lines and in ASCII: a path may be no UTF-8."""
    import json

    import msgspec

    return json.dumps(msgspec.to_builtins(value), indent=2)
