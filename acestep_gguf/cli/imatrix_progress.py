"""How far the making of an imatrix is, on standard error: a bar at a terminal, elsewhere a line a minute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from acestep_gguf.cli.terminal import cleaning_up_on_ctrl_c

SECONDS_BETWEEN_LINES: Final = 60.0
CARRIES_ON: Final = "stopped: the same command carries on."


@contextmanager
def watching(console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows how many of how many samples are done; Ctrl-C says how to carry on."""
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    next_line = monotonic() + SECONDS_BETWEEN_LINES
    is_first = True
    with cleaning_up_on_ctrl_c(CARRIES_ON), bar:
        task = bar.add_task("", total=None)

        def show(n_done: int, n_all: int) -> None:
            nonlocal next_line, is_first
            bar.update(task, completed=n_done, total=n_all)
            if is_first and n_done:
                console.print(f"{n_done} of {n_all} were read already")
            if not console.is_terminal and monotonic() >= next_line:
                next_line = monotonic() + SECONDS_BETWEEN_LINES
                console.print(f"{n_done} of {n_all}")
            is_first = False

        yield show
