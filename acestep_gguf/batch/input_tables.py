"""Tables of questions: JSON lines and CSV with the columns id, image or images, prompt, and any others."""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from acestep_gguf.batch.rows import COLUMNS
from acestep_gguf.batch.tasks import Entry, shown
from acestep_gguf.errors import BatchError, ImageError, MissingPackageError
from acestep_gguf.vision.image_file import pictures_of

MAX_LINE_BYTES: Final = 2**20
MAX_IMAGES: Final = 1_000


class _Asked(msgspec.Struct):
    """The columns that mean something; the others are carried through."""

    id: str | int | None = None
    image: str | None = None
    images: list[str] | None = None
    prompt: str | None = None


OWN_COLUMNS: Final = frozenset(_Asked.__struct_fields__)
# They may not be carried through: the table has columns of these names.
TAKEN: Final = frozenset(COLUMNS) - OWN_COLUMNS


def jsonl_entries(path: Path) -> Iterator[Entry]:
    """The pictures of a file of JSON objects, one a line."""
    with _opened(path) as file:
        for number, line in lines(file, shown(path)):
            yield from entries_of_json(line, f"{shown(path)}:{number}", path.parent)


def csv_entries(path: Path) -> Iterator[Entry]:
    """The pictures of a CSV file with a header."""
    with _opened(path) as file:
        texts = (_decoded(line, f"{shown(path)}:{number}") for number, line in lines(file, shown(path), b""))
        table = csv.reader(texts, strict=True)
        names: list[str] | None = None
        try:
            for cells in table:
                where = f"{shown(path)}:{table.line_num}"
                if names is None:
                    names = cells
                    if len(set(names)) < len(names):
                        raise BatchError(f"{where} names a column twice: give each its own name.")
                elif cells:
                    if len(cells) != len(names):
                        raise BatchError(f"{where} has {len(cells)} cells, not {len(names)}: correct it.")
                    yield from _entries(_of_cells(names, cells, where), where, path.parent)
        except csv.Error as error:
            raise BatchError(f"{shown(path)}:{table.line_num} is no CSV ({error}): correct it.") from error


READERS: Final[Mapping[str, Callable[[Path], Iterator[Entry]]]] = {
    ".jsonl": jsonl_entries,
    ".csv": csv_entries,
}


def entries_of_json(line: bytes, where: str, folder: Path) -> list[Entry]:
    """The pictures of one JSON object, whose paths start from ``folder``: an entry, or one for each page.

    Raises:
        BatchError: it is not an object, or a value is not of its column's type.
    """
    try:
        return _entries(msgspec.json.decode(line, type=dict[str, Any]), where, folder)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BatchError(f"{where} is no JSON object ({error}): correct it.") from error


def pages_of(path: Path) -> list[Path]:
    """The pages of a PDF, else the path itself; of one that cannot be read, too, and its row says why."""
    try:
        return pictures_of(path)
    except (ImageError, MissingPackageError):
        return [path]


def lines(file: BinaryIO, name: str, strip: bytes = b"\r\n") -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1, but for those that are empty.

    Raises:
        BatchError: one is too long, or cannot be read.
    """
    number = 0
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise BatchError(f"{name}:{number} is longer than {MAX_LINE_BYTES >> 20} MiB.")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if strip:
                line = line.rstrip(strip)
            if line:
                yield number, line
    except OSError as error:
        raise BatchError(f"{name} cannot be read ({error.strerror}).") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BatchError(f"{shown(path)} cannot be read ({error.strerror}): give another table.") from error


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BatchError(f"{where} is not UTF-8 ({error.reason}): save it as UTF-8.") from error


def _of_cells(names: list[str], cells: list[str], where: str) -> dict[str, Any]:
    """A row of CSV as JSON would have it: an empty cell of a column of ours is none."""
    row: dict[str, Any] = {
        name: cell for name, cell in zip(names, cells, strict=True) if cell or name not in OWN_COLUMNS
    }
    if "images" in row:
        try:
            row["images"] = msgspec.json.decode(row["images"], type=list[str])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BatchError(f'{where}: images is no list such as ["a.jpg", "b.jpg"].') from error
    return row


def _entries(row: dict[str, Any], where: str, folder: Path) -> list[Entry]:
    """One, or one for each page of ``image``; the pages of PDFs among ``images`` belong to one question."""
    try:
        asked = msgspec.convert({name: row[name] for name in OWN_COLUMNS & row.keys()}, _Asked)
    except msgspec.ValidationError as error:
        raise BatchError(f"{where} is no question ({error}): correct it.") from error
    if taken := TAKEN & row.keys():
        raise BatchError(f"{where} has a column {min(taken)}, which answers have, too: rename it.")
    if asked.image is not None and asked.images is not None:
        raise BatchError(f"{where} has image and images: give one of them.")
    paths = [folder / image for image in asked.images or ([asked.image] if asked.image else [])]
    images = [page for path in paths for page in pages_of(path)]
    if len(images) > MAX_IMAGES:
        raise BatchError(f"{where} has {len(images)} pictures: give {MAX_IMAGES} at most.")
    if not images and asked.prompt is None:
        raise BatchError(f"{where} has neither image nor prompt: give one of them.")
    if asked.prompt is not None and not asked.prompt.strip():
        raise BatchError(f"{where} has an empty prompt: leave it out, or ask something.")
    together = [(image,) for image in images] if asked.image else [tuple(images)]
    fields = {name: value for name, value in row.items() if name not in OWN_COLUMNS}
    return [
        Entry(asked.id if asked.id is not None else _name(about, where), about, asked.prompt, fields)
        for about in together
    ]


def _name(images: tuple[Path, ...], where: str) -> str:
    return shown(images[0]) if images else where
