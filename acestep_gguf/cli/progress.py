"""A conversion as it happens: a bar and a table, or JSON lines."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec
from rich import progress
from rich.console import Console

from acestep_gguf.cli.terminal import cleaning_up_on_ctrl_c, for_stdout
from acestep_gguf.quantize.conversion_events import Event, FileDone, Finished, Planned, PlannedFile, Progress

SECONDS_BETWEEN_LINES: Final = 1.0
CARRIES_ON: Final = "stopped: the same command carries on."


@contextmanager
def display(*, log_json: bool) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows events, and show at the end what became of them.

    A bar goes to standard error, if that is a terminal; the table, or JSON lines, to standard output.
    """
    if log_json:
        with cleaning_up_on_ctrl_c(CARRIES_ON):
            yield JsonLines()
        return
    report = Report()
    console = Console(stderr=True)
    with cleaning_up_on_ctrl_c(CARRIES_ON), Bar(console) as bar:

        def show(event: Event) -> None:
            report.add(event)
            bar.show(event)

        yield show
    print(for_stdout(str(report)))


class JsonLines:
    """Prints each event as a JSON object on a line, progress about once in a second."""

    def __init__(self) -> None:
        self._next_progress = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            is_last = (event.bytes_written, event.tensors_written) == (event.bytes_total, event.tensors_total)
            if monotonic() < self._next_progress and not is_last:
                return
            self._next_progress = monotonic() + SECONDS_BETWEEN_LINES
        fields = {"event": event.event, **msgspec.to_builtins(event)}
        print(json.dumps(fields), flush=True)  # unlike msgspec's, in ASCII: a path may be no UTF-8


class Bar:
    """A progress bar with bytes, speed and time left; nothing where ``console`` is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: progress.TaskID | None = None

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        if not isinstance(event, Progress):
            return
        if self._task is None:
            # What an interrupted conversion left is there at once, and no part of the speed.
            self._task = self._bar.add_task("", total=event.bytes_total, completed=event.bytes_written)
        self._bar.update(self._task, completed=event.bytes_written)


class Report:
    """What was planned and done, as a table."""

    def __init__(self) -> None:
        self._plan: Planned | None = None
        self._done: dict[str, FileDone] = {}
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        match event:
            case Planned():
                self._plan = event
            case FileDone():
                self._done[event.file] = event
            case Finished():
                self._finished = event

    def __str__(self) -> str:
        if self._plan is None:
            return ""
        if not self._plan.files:
            return f"{self._plan.folder} has everything already."
        rows = [("file", "size", "bits/weight", "seconds", "types")]
        rows += [self._row(file) for file in self._plan.files]
        return "\n".join([*_aligned(rows), *_warning(self._plan), *self._last_lines(self._plan)])

    def _row(self, file: PlannedFile) -> tuple[str, str, str, str, str]:
        done = self._done.get(file.file)
        types = ", ".join(f"{count} {qtype}" for qtype, count in file.types.items())
        fallbacks = ", ".join(f"{count} {change}" for change, count in file.fallbacks.items())
        return (
            file.file,
            _size(self._bytes(file)),
            f"{file.bits_per_weight:.2f}" if file.types else "",
            f"{done.seconds:.1f}" if done else "",
            types
            + (f" (rows do not fit: {fallbacks})" if fallbacks else "")
            + (f" (not in the imatrix: {_shortened(file.unweighed)})" if file.unweighed else ""),
        )

    def _bytes(self, file: PlannedFile) -> int:
        """The size of a file, or before it is written the size that it will have at most."""
        return self._done[file.file].bytes if file.file in self._done else file.bytes

    def _last_lines(self, plan: Planned) -> list[str]:
        if self._finished is not None:
            ready = Path(self._finished.folder, self._finished.file or "")
            size = _size(sum(map(self._bytes, plan.files)))
            return [f"{ready} is ready: {size} written in {self._finished.seconds:.1f} seconds."]
        kept = sum(file.bytes_kept for file in plan.files)
        return [
            f"disk: {_size(plan.bytes_needed)} needed, {_size(plan.bytes_free)} free",
            *([f"{_size(kept)} are there from an interrupted conversion"] if kept else []),
            f"memory: about {_size(plan.memory)}",
            "Nothing was written.",
        ]


def _warning(plan: Planned) -> list[str]:
    if plan.source_quantization is None:
        return []
    return [
        f"the checkpoint is quantized already ({plan.source_quantization}): the decoders are quantized twice"
    ]


def _aligned(rows: Sequence[tuple[str, str, str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [
                file.ljust(widths[0]),
                *(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)),
                types,
            ]
        ).rstrip()
        for file, *numbers, types in rows
    ]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"
