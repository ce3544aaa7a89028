"""What happens before the first word of an answer, on one line of a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from acestep_gguf.progress import Progress

if TYPE_CHECKING:
    from rich.live import Live

    from acestep_gguf.answer import Chunk


class StatusLine:
    """A line on standard error, if that is a terminal; elsewhere nothing.

    Args:
        wanted: show nothing if this is false.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._live = _live() if wanted and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self, progress: Progress) -> None:
        """Show how far an engine is; any thread may."""
        if self._live is not None:
            from rich.spinner import Spinner

            self._live.update(Spinner("line", _text(progress)))
            self._live.start(refresh=True)

    def hide(self) -> None:
        """Take the line away; ``show`` brings it back."""
        if self._live is not None:
            self._live.stop()

    def until_text(self, chunks: "Iterable[Chunk]") -> "Iterator[Chunk]":
        """The same chunks; the line is gone when the first one comes."""
        for chunk in chunks:
            self.hide()
            yield chunk


def _live() -> "Live":
    from rich.console import Console
    from rich.live import Live

    class KeepingTheCursor(Console):
        """Whatever ends the process then leaves a terminal with a cursor."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    console = KeepingTheCursor(stderr=True)
    return Live(console=console, transient=True, refresh_per_second=10, redirect_stdout=False)


def _text(progress: Progress) -> str:
    match progress.stage:
        case "loading":
            return "loading"
        case "encoding":
            return f"picture {progress.done + 1} of {progress.total}"
        case "reading":
            return f"reading {100 * progress.done // progress.total} %"
