"""What a person types: messages, with line editing, completion and history, and answers to yes or no."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Final

from acestep_gguf.cli.history import History
from acestep_gguf.cli.lines import whole_message
from acestep_gguf.cli.terminal import printable

PROMPT: Final = "> "
MORE: Final = "... "

# Whole lines that a line, up to the cursor, may become.
Completions = Callable[[str], Sequence[str]]


class Keyboard:
    """A person at a terminal.

    Just before it waits for a key, readline can miss a Ctrl-C, which then drops the line when it ends.

    Args:
        completions: what Tab offers.
        history: what the arrow keys find, and where lines are added; None: nothing is kept.
    """

    def __init__(self, completions: Completions, history: History | None) -> None:
        self._history = history
        self._readline = _readline(completions)
        for line in history.lines() if history else ():
            self._remember(line)
        self._elsewhere: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None
        self._is_typing = False

    def messages(self) -> Iterator[str]:
        """Messages as they are typed; Ctrl-C drops one, Ctrl-D ends them.

        The handler of Ctrl-C that was there is in force except while somebody types.
        """
        self._elsewhere = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._drop_line)
        while True:
            try:
                message = whole_message(self._line(PROMPT), self._more)
            except KeyboardInterrupt:
                print()
            except EOFError:
                print()
                return
            except UnicodeDecodeError as error:
                print(f"error: the line is not in the terminal's encoding ({error.reason}).", file=sys.stderr)
            else:
                yield message

    def confirms(self, question: str) -> bool:
        """Whether the answer to ``question`` is yes."""
        try:
            answer = self._read(f"{printable(question)} [y/N] ")
        except (KeyboardInterrupt, EOFError, UnicodeDecodeError):
            print()
            return False
        return answer.strip().lower() in ("y", "yes")

    def _line(self, prompt: str) -> str:
        line = self._read(prompt)
        self._remember(line)
        if self._history is not None:
            self._history.add(line)
        return line

    def _more(self) -> str | None:
        try:
            return self._line(MORE)
        except EOFError:
            print()
            return None

    def _read(self, prompt: str) -> str:
        try:
            self._is_typing = True
            return input(prompt)
        finally:
            self._is_typing = False

    def _remember(self, line: str) -> None:
        if self._readline is not None and line.strip():
            self._readline.add_history(line)

    def _drop_line(self, number: int, frame: FrameType | None) -> None:
        if self._is_typing:
            self._is_typing = False  # a second Ctrl-C must not interrupt what the first one began
            raise KeyboardInterrupt
        if callable(self._elsewhere):
            self._elsewhere(number, frame)


def _readline(completions: Completions) -> ModuleType | None:
    """The module that input() edits lines with once it is there; it does not exist everywhere."""
    with suppress(ImportError):
        import readline

        def complete(_word: str, number: int) -> str | None:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found = completions(line)
            return found[number][readline.get_begidx() :] if number < len(found) else None

        readline.set_auto_history(False)
        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        is_editline = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_editline else "tab: complete")
        return readline
    return None
