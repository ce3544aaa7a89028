"""The Parquet files of Hugging Face's data sets, row by row; pictures stay where they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from acestep_gguf.errors import AceStepError, BenchmarkError, ImageError
from acestep_gguf.prompt.image_source import MAX_IMAGE_BYTES
from acestep_gguf.score.row import MAX_COLUMNS, MAX_ROWS, Row, texts_of

# Columns of pictures, the first that there is; beside "decoded_image" MathVista's "image" is a path.
PICTURE_COLUMNS: Final = ("decoded_image", "image")
ROWS_AT_ONCE: Final = 16
BUFFER_BYTES: Final = 2**16


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, their cells as of ``texts_of``.

    Raises:
        BenchmarkError: it cannot be read, is no Parquet, or is too large in some way.
    """
    with _refusing_damage(path, BenchmarkError), parquet.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
        names = file.schema_arrow.names
        if file.metadata.num_rows > MAX_ROWS or len(names) > MAX_COLUMNS:
            raise BenchmarkError(f"{path} has more than {MAX_ROWS} rows or {MAX_COLUMNS} columns.")
        column = next((name for name in PICTURE_COLUMNS if name in names), None)
        pictures = _Pictures(path, column) if column else None
        row = 0
        for group in range(file.num_row_groups):
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
                for cells in batch.to_pylist():
                    data = _picture(cells.pop(column, None))
                    picture = None
                    if pictures is not None and data is not None:
                        key = blake2b(data, digest_size=16).hexdigest()
                        picture = _ParquetPicture(pictures, group, number, key)
                    row += 1
                    number += 1
                    where = f"{path} row {row}"
                    yield Row(where, texts_of(cells, where), picture)


class _Pictures:
    """The pictures of a file. They are best read in their order: a group of rows is read from its start."""

    def __init__(self, path: Path, column: str) -> None:
        self._path = path
        self._column = column
        self._lock = Lock()
        self._group, self._next = -1, 0
        self._rest: Iterator[bytes | None] = iter(())

    def read(self, group: int, number: int) -> bytes:
        """The picture of row ``number`` of ``group``, not decoded; ImageError if the file has changed."""
        with self._lock, _refusing_damage(self._path, ImageError):
            if group != self._group or number < self._next:
                self._rest, self._group, self._next = self._of(group), group, 0
            data = None
            while self._next <= number:
                data = next(self._rest, None)
                self._next += 1
            if data is None:
                raise ImageError(f"{self._path} has changed: start again.")
            return data

    def _of(self, group: int) -> Iterator[bytes | None]:
        with parquet.ParquetFile(self._path, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self._column]):
                for cell in batch.column(0):
                    yield _picture(cell.as_py())


@dataclass(frozen=True, slots=True)
class _ParquetPicture:
    pictures: _Pictures
    group: int
    number: int
    key: str

    def read(self) -> bytes:
        return self.pictures.read(self.group, self.number)


def _picture(cell: Any) -> bytes | None:
    """The bytes of a cell as Hugging Face writes pictures, alone or in a list of one."""
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    data = cell.get("bytes") if isinstance(cell, dict) else None
    return data if isinstance(data, bytes) and len(data) <= MAX_IMAGE_BYTES else None


@contextmanager
def _refusing_damage(path: Path, error_type: type[AceStepError]) -> Iterator[None]:
    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise error_type(f"{path} is no sound Parquet file ({reason}): fetch it again.") from error
