"""A row of a benchmark's table, and how large one may be."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import PictureRef

MAX_ROWS: Final = 200_000
MAX_COLUMNS: Final = 100
MAX_TEXT_BYTES: Final = 64 * 2**10
METADATA: Final = "metadata"  # an object whose fields count as columns, in MathVista's files
# Texts that stand for nothing in Parquet and JSON: lmms-eval's MMBench came out of pandas.
MISSING: Final = ("", "nan")


@dataclass(frozen=True, slots=True)
class Row:
    """A row: where it is, for messages; its cells by column, but for those without a value; its own picture.

    A list is written as Python would, as VLMEvalKit's TSV files have it.
    """

    where: str
    texts: Mapping[str, str]
    own_picture: PictureRef | None

    @property
    def picture(self) -> PictureRef:
        """The row's picture; BenchmarkError without one."""
        if self.own_picture is None:
            raise BenchmarkError(f"{self.where} has no picture: give the benchmark's official file.")
        return self.own_picture

    def __getitem__(self, column: str) -> str:
        """The cell of a column that there must be.

        Raises:
            BenchmarkError: it has no value, or there is no such column.
        """
        if column not in self.texts:
            raise BenchmarkError(f"{self.where} has nothing in {column}: give the benchmark's official file.")
        return self.texts[column]


def column_name(name: str) -> str:
    """In lower case, but for those of options: "A" and so on."""
    return name if len(name) == 1 and name.isupper() else name.lower()


def texts_of(cells: dict[str, Any], where: str) -> dict[str, str]:
    """Cells of Parquet or JSON as a row has them: as texts, and those of METADATA among the others.

    Raises:
        BenchmarkError: one is too long.
    """
    metadata = cells.get(METADATA)
    texts = {}
    for name, value in (cells | metadata if isinstance(metadata, dict) else cells).items():
        text = "" if value is None or name == METADATA else str(value)
        if len(text) > MAX_TEXT_BYTES:
            raise BenchmarkError(f"{where} has a text of more than {MAX_TEXT_BYTES >> 10} KiB.")
        if text not in MISSING:
            texts[column_name(name)] = text
    return texts


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; BenchmarkError if that, or reading, fails."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read ({error.strerror}): give another file.") from error
