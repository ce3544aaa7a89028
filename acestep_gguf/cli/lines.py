"""Messages of one line or several, and those of a standard input that is no terminal."""

import sys
from collections.abc import Callable, Iterator
from typing import Final

from acestep_gguf.errors import PromptError

MAX_LINE_BYTES: Final = 4 * 2**20
QUOTES: Final = '"""'
CONTINUES: Final = "\\"


def whole_message(line: str, more: Callable[[], str | None]) -> str:
    """The message that begins with ``line``.

    A line that ends with a backslash goes on in the next one; what begins with three quotes ends with them.

    Args:
        line: without its end.
        more: the next line; None if there is none, which ends the message.

    Raises:
        PromptError: it is too long.
    """
    lines = [line]
    if is_quoted := line.lstrip().startswith(QUOTES):
        lines = [line.lstrip().removeprefix(QUOTES)]
    length = len(line)
    while not lines[-1].rstrip().endswith(QUOTES) if is_quoted else lines[-1].endswith(CONTINUES):
        if (following := more()) is None:
            break
        length += len(following)
        if length > MAX_LINE_BYTES:
            raise PromptError(f"a question is longer than {MAX_LINE_BYTES >> 20} MiB.")
        if not is_quoted:
            lines[-1] = lines[-1].removesuffix(CONTINUES)
        lines.append(following)
    if is_quoted:
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines)


def piped_messages() -> Iterator[str]:
    """Messages on standard input.

    Raises:
        PromptError: there is none, or a line is too long or not UTF-8.
    """
    lines = _piped_lines()
    for line in lines:
        yield whole_message(line, lambda: next(lines, None))


def _piped_lines() -> Iterator[str]:
    if sys.stdin is None:
        raise PromptError("standard input is closed: give the questions there, one a line.")
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise PromptError(f"a line of standard input is longer than {MAX_LINE_BYTES >> 20} MiB.")
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"a line of standard input is not UTF-8 ({error.reason}).") from error
