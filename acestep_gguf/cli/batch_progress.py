"""A batch as it happens, on standard error: a bar at a terminal, elsewhere a line a minute."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from acestep_gguf.batch.rows import Row
from acestep_gguf.batch.run import Show, Summary
from acestep_gguf.batch.tasks import shown
from acestep_gguf.cli.terminal import printable

SECONDS_BETWEEN_LINES: Final = 60.0


class BatchProgress:
    """Shows the rows of the table ``output`` as they are done."""

    def __init__(self, output: Path, console: Console | None = None) -> None:
        self._output = shown(output)
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._started = self._next_line = monotonic()

    @contextmanager
    def watching(self, n_done: int, n_all: int) -> Iterator[Show]:
        """Give a function that shows rows, of which ``n_done`` of ``n_all`` were there before."""
        if n_done:
            self._print(f"{n_done} of {n_all} rows were there already")
        self._started = monotonic()
        self._next_line = self._started + SECONDS_BETWEEN_LINES
        done, errors = n_done, 0
        with self._bar:
            bar = self._bar.add_task("", total=n_all, completed=n_done)

            def show(row: Row) -> None:
                nonlocal done, errors
                done += 1
                self._bar.advance(bar)
                if row.error is not None:
                    errors += 1
                    if errors == 1:
                        self._print(f"{row.id}: {row.error} (The table has all errors.)")
                if not self._console.is_terminal and monotonic() >= self._next_line:
                    self._next_line = monotonic() + SECONDS_BETWEEN_LINES
                    per_minute = self._per_minute(done - n_done)
                    minutes = (n_all - done) / per_minute
                    left = f"{per_minute:.1f} a minute, {minutes:.0f} min left"
                    self._print(f"{done} of {n_all}, {left}, errors {errors}")

            yield show

    def finish(self, summary: Summary) -> None:
        """Say what became of it."""
        made = ""
        if summary.made_now:
            made = f" (made now: {summary.made_now}, {self._per_minute(summary.made_now):.1f} a minute)"
        self._print(
            f"{self._output} is written: rows {summary.rows}, answers {summary.rows - summary.errors}, "
            f"errors {summary.errors}{made}"
        )
        if summary.errors:
            self._print("--retry-errors asks those again")

    def interrupt(self) -> None:
        """Say how to carry on; any thread may."""
        self._bar.stop()
        self._print("stopped: the same command carries on")

    def _per_minute(self, n_rows: int) -> float:
        return 60 * n_rows / max(monotonic() - self._started, 1e-6)

    def _print(self, line: str) -> None:
        self._console.print(printable(line), markup=False)


class _Speed(ProgressColumn):
    """Rows a minute, without those that were there before."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{60 * task.speed:.1f}/min")
