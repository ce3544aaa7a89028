"""The table of a batch as a file: JSON lines, CSV or Parquet, a row for each task, in their order."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from acestep_gguf.batch.journal import Journal
from acestep_gguf.batch.rows import COLUMNS, as_text, table_row
from acestep_gguf.batch.tasks import Task, shown
from acestep_gguf.errors import BatchError, MissingPackageError
from acestep_gguf.storage.atomic_file import opened_atomically, remove_partial

# Programs for spreadsheets compute what begins so, and a stranger may have written it into a picture; numbers
# stay numbers.
FORMULA: Final = re.compile(r"[=@\t\r]|[+-](?![0-9.]+$)")
# Control characters but tab and new line: CSV may be shown at a terminal, and not all readers take NUL.
CONTROLS: Final = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def check_output(path: Path) -> None:
    """Check that a table can be written to ``path``, before hours of work are put into it.

    Raises:
        BatchError: its name has another suffix, or its folder is not there.
        MissingPackageError: Parquet, without pyarrow.
    """
    if path.suffix.lower() not in WRITERS:
        raise BatchError(f"{shown(path)} is no table: give a name that ends in {', '.join(WRITERS)}.")
    if path.is_dir() or not path.parent.is_dir():
        raise BatchError(f"{shown(path)} cannot be made: give a file in a folder that is there.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise MissingPackageError("pyarrow", "batch")


def write_table(path: Path, tasks: Sequence[Task], journal: Journal, *, is_data: bool = False) -> None:
    """Write the rows of ``tasks``, all of which the journal has, to ``path``; a kill leaves what was there.

    Args:
        path: file to write or to replace.
        tasks: in the order of the rows.
        journal: has the rows.
        is_data: whether answers are JSON, whose members become columns.

    Raises:
        BatchError: it cannot be written.
    """
    rows = _Rows(tasks, journal, is_data)
    try:
        remove_partial([path])  # the journal is locked
        with opened_atomically(path) as file:
            WRITERS[path.suffix.lower()](file, rows)
    except OSError as error:
        raise BatchError(
            f"{shown(path)} cannot be written ({error.strerror}): make room; the same command writes it."
        ) from error


class _Rows:
    """The rows of a table, read from the journal each time that they are gone through."""

    def __init__(self, tasks: Sequence[Task], journal: Journal, is_data: bool) -> None:
        self._tasks = tasks
        self._journal = journal
        self._is_data = is_data
        self._known = dict.fromkeys([*COLUMNS, *(name for task in tasks for name in task.fields)])

    def columns(self) -> list[str]:
        """The names of all columns."""
        names = dict(self._known)
        if self._is_data:
            for row in self:
                names |= dict.fromkeys(row)
        return list(names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for task in self._tasks:
            row = self._journal.row(task)
            yield table_row(row, task, is_data=self._is_data, taken=self._known)


def _write_jsonl(file: BinaryIO, rows: _Rows) -> None:
    for row in rows:
        file.write(msgspec.json.encode(row) + b"\n")


def _write_csv(file: BinaryIO, rows: _Rows) -> None:
    columns = rows.columns()
    text = io.TextIOWrapper(file, "utf-8", newline="")
    table = csv.writer(text)
    table.writerow(map(_csv_cell, columns))
    for row in rows:
        table.writerow(_csv_cell(row.get(name)) for name in columns)
    text.detach()  # flushes it, and leaves the file open


def _csv_cell(value: Any) -> Any:
    """A value in CSV: texts that a spreadsheet would compute get an apostrophe before them."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = as_text(value).translate(CONTROLS)
    return f"'{text}" if FORMULA.match(text) else text


def _write_parquet(file: BinaryIO, rows: _Rows) -> None:
    from acestep_gguf.batch.parquet import write_parquet  # noqa: PLC0415 (pyarrow is an extra)

    write_parquet(file, rows, rows.columns())


WRITERS: Final[Mapping[str, Callable[[BinaryIO, _Rows], None]]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
