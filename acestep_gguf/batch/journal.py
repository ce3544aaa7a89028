"""The journal of a batch: every answer is in it as soon as it is there, whatever happens then.

A file of JSON lines. The first one says with which settings it was begun, each of the others has the row of
a task, in the order in which they were done. A line is on the disk before the next one is written, so a kill,
a power failure or a full disk can tear the last one only, which is then cut off. A line that is damaged
otherwise is passed over, and its task done again.
"""

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from acestep_gguf.batch.rows import Row
from acestep_gguf.batch.tasks import Task, shown
from acestep_gguf.errors import BatchError

SUFFIX: Final = ".journal"
VERSION: Final = 1
# The name of a setting that is no option.
BUNDLE: Final = "bundle"
# More than any row has: prompt and path come from lines of a mebibyte at most.
MAX_LINE_BYTES: Final = 64 * 2**20

Settings = Mapping[str, Any]


def journal_path(output: Path) -> Path:
    """Where the journal of the table ``output`` lies."""
    return output.with_name(output.name + SUFFIX)


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    batch: int  # VERSION
    settings: dict[str, Any]
    replaces_sidecars: bool


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    row: Row


class _Place(NamedTuple):
    """Where a line lies, in bytes."""

    start: int
    length: int
    is_error: bool


_HEADER_START: Final = b'{"batch":'
_DECODING_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Journal:
    """The journal of the table ``output``, beside it; locked until it is closed.

    Args:
        output: file of the table.
        settings: what all answers depend on, as JSON values under the names of options.
        restart: forget what is there, the table too.

    Raises:
        BatchError: it was begun with other settings, another process writes it, a table without a journal is
            in the way, it is no journal, or it cannot be read or written.
    """

    replaces_sidecars: bool

    def __init__(self, output: Path, settings: Settings, *, restart: bool = False) -> None:
        self.path = journal_path(output)
        self._output = output
        if output.exists() and not self.path.exists():
            raise BatchError(
                f"{shown(output)} is there, and no batch made it (it has no journal): give another output, "
                "or move it away.",
                settings=["output"],
            )
        self._places: dict[str, _Place] = {}
        self._end = 0
        try:
            self._file = open(  # noqa: SIM115 (until it is closed)
                os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0
            )
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
                output.unlink(missing_ok=True)
            self._read(settings)
            if not self._end:
                self._write(_Header(VERSION, dict(settings), restart))
                self.replaces_sidecars = restart
        except OSError as error:
            self._file.close()
            raise self._failure(error) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, task: Task) -> bool:
        return task.key in self._places

    def is_error(self, task: Task) -> bool:
        """Whether the row of a task says that it failed."""
        return task.key in self._places and self._places[task.key].is_error

    def append(self, task: Task, row: Row) -> None:
        """Keep the row of a task, in the place of an earlier one.

        Raises:
            BatchError: it cannot be written; the rows before it are safe.
        """
        start = self._end
        try:
            self._write(_Line(task.key, row))
        except OSError as error:
            raise self._failure(error) from error
        self._places[task.key] = _Place(start, self._end - start, row.error is not None)

    def row(self, task: Task) -> Row:
        """The row of a task that has one.

        Raises:
            BatchError: the journal was damaged since it was opened.
        """
        place = self._places[task.key]
        try:
            return msgspec.json.decode(
                os.pread(self._file.fileno(), place.length, place.start), type=_Line
            ).row
        except OSError as error:
            raise self._failure(error) from error
        except _DECODING_ERRORS as error:
            raise BatchError(
                f"{shown(self.path)} was changed by another program: the same command carries on."
            ) from error

    def _lock(self) -> None:
        """The system unlocks it when the process ends, however that happens."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BatchError(
                f"another process writes {shown(self._output)}: wait for it, or give another output.",
                settings=["output"],
            ) from error

    def _read(self, settings: Settings) -> None:
        """Take in all whole lines, and cut off what is behind them."""
        with self.path.open("rb") as file:
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                if not self._end:
                    self._check_header(line, settings)
                else:
                    with suppress(*_DECODING_ERRORS):
                        read = msgspec.json.decode(line, type=_Line)
                        self._places[read.key] = _Place(self._end, len(line), read.row.error is not None)
                self._end += len(line)
        if not self._end and not (line.startswith(_HEADER_START) or _HEADER_START.startswith(line)):
            raise self._no_journal()
        self._file.truncate(self._end)

    def _check_header(self, line: bytes, settings: Settings) -> None:
        try:
            header = msgspec.json.decode(line, type=_Header)
        except _DECODING_ERRORS as error:
            raise self._no_journal() from error
        if header.batch != VERSION:
            raise self._no_journal()
        names = header.settings.keys() | settings.keys()
        if changed := sorted(name for name in names if header.settings.get(name) != settings.get(name)):
            raise BatchError(
                f"{shown(self._output)} was begun with another {', '.join(changed)}: give the same again, "
                "another output, or restart=True to begin anew.",
                settings=["output", "restart", *(name for name in changed if name != BUNDLE)],
            )
        self.replaces_sidecars = header.replaces_sidecars

    def _write(self, line: _Header | _Line) -> None:
        """Write a line behind the last one; one that does not fit on the disk is taken back."""
        data = memoryview(msgspec.json.encode(line) + b"\n")
        self._file.seek(self._end)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(data)

    def _failure(self, error: OSError) -> BatchError:
        return BatchError(
            f"{shown(self.path)} cannot be written ({error.strerror}): make room, or give another output; "
            "the same command carries on.",
            settings=["output"],
        )

    def _no_journal(self) -> BatchError:
        return BatchError(
            f"{shown(self.path)} is not the journal of a batch of this version: give another output, or "
            "restart=True to replace it.",
            settings=["output", "restart"],
        )
