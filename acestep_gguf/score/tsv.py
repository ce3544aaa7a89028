"""VLMEvalKit's TSV files, row by row, as pandas reads them; pictures stay where they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.pictures import MAX_BASE64_BYTES, EncodedPicture
from acestep_gguf.score.row import MAX_COLUMNS, MAX_ROWS, MAX_TEXT_BYTES, Row, column_name, opened

IMAGE: Final = "image"
MAX_ROW_BYTES: Final = MAX_BASE64_BYTES + 2**20
MAX_ROW_LINES: Final = 10_000
# Cells that pandas.read_csv takes for nothing, whether there are quotes around them or not. So VLMEvalKit
# neither shows nor accepts an option that reads "None".
MISSING: Final = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
# A shorter cell of the column of pictures is the index of the row that has the picture.
MAX_REFERENCE_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class _Cell:
    offset: int  # from the start of its row
    raw: bytes  # without the quotes around it


def tsv_rows(path: Path) -> Iterator[Row]:
    """The rows of a TSV file with a header.

    Names of columns are in lower case but for those of options, "A" and so on. The column "image" gives the
    picture, or stays a text where it is the index of the row that has the picture.

    Raises:
        BenchmarkError: it cannot be read, is no TSV, or is too large in some way.
    """
    names: list[str] | None = None
    with opened(path) as file:
        for number, (offset, cells) in enumerate(_records(file, path)):
            where = f"{path} row {number}"
            if names is None:
                names = _names(cells, where)
                continue
            if number > MAX_ROWS:
                raise BenchmarkError(f"{path} has more than {MAX_ROWS} rows.")
            if len(cells) != len(names):
                raise BenchmarkError(f"{where} has {len(cells)} cells, not {len(names)}: fetch it again.")
            texts: dict[str, str] = {}
            picture = None
            for name, cell in zip(names, cells, strict=True):
                if name == IMAGE and len(cell.raw) > MAX_REFERENCE_CHARS:
                    key = blake2b(cell.raw, digest_size=16).hexdigest()
                    picture = EncodedPicture(path, offset + cell.offset, len(cell.raw), key)
                elif (text := _text(cell.raw, where)) not in MISSING:
                    texts[name] = text
            yield Row(where, texts, picture)


def _names(cells: list[_Cell], where: str) -> list[str]:
    names = [column_name(_text(cell.raw, where)) for cell in cells]
    if len(set(names)) < len(names) or len(names) > MAX_COLUMNS:
        raise BenchmarkError(f"{where} is no header of {MAX_COLUMNS} different names or fewer: is it a TSV?")
    return names


def _text(raw: bytes, where: str) -> str:
    if len(raw) > MAX_TEXT_BYTES:
        raise BenchmarkError(f"{where} has a text of more than {MAX_TEXT_BYTES >> 10} KiB.")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{where} is not UTF-8 ({error.reason}): fetch the file again.") from error


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, list[_Cell]]]:
    """Where in the file each row begins, and its cells; empty lines are left out."""
    offset = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(offset)
    while row := bytearray(_line(file, path)):
        cells = _cells(row, file, path)
        if len(cells) > 1 or cells[0].raw:
            yield offset, cells
        offset += len(row)


def _cells(row: bytearray, file: BinaryIO, path: Path) -> list[_Cell]:
    """The cells of ``row``, to which those lines are added over which its quotes go on."""
    cells = []
    start = 0
    while True:
        end, quoted = start, b""
        if row.startswith(b'"', start):
            end = _closing_quote(row, start + 1, file, path) + 1
            quoted = bytes(row[start + 1 : end - 1]).replace(b'""', b'"')
        tab = row.find(b"\t", end)
        tail = tab if tab >= 0 else len(row) - row.endswith(b"\n") - row.endswith(b"\r\n")
        # What follows a closing quote belongs to the cell, says pandas.
        cells.append(_Cell(start + (end > start), quoted + row[end:tail]))
        if tab < 0:
            return cells
        start = tab + 1


def _closing_quote(row: bytearray, at: int, file: BinaryIO, path: Path) -> int:
    """Where the quote is that ends the cell; two of them stand for one that does not."""
    for _ in range(MAX_ROW_LINES):
        while (quote := row.find(b'"', at)) >= 0:
            if not row.startswith(b'""', quote):
                return quote
            at = quote + 2
        at = len(row)
        row += _line(file, path)
        if len(row) == at:
            raise BenchmarkError(f"{path} ends inside of quotes: fetch the file again.")
        if len(row) > MAX_ROW_BYTES:
            break
    raise BenchmarkError(
        f"{path} has a row of more than {MAX_ROW_BYTES >> 20} MiB or {MAX_ROW_LINES} lines: is it a TSV?"
    )


def _line(file: BinaryIO, path: Path) -> bytes:
    line = file.readline(MAX_ROW_BYTES + 1)
    if len(line) > MAX_ROW_BYTES:
        raise BenchmarkError(f"{path} has a line of more than {MAX_ROW_BYTES >> 20} MiB: is it a TSV?")
    return line
