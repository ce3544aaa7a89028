"""Which pictures are meant: files, folders, patterns, tables, and standard input."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from acestep_gguf.batch.input_tables import READERS, entries_of_json, lines, pages_of
from acestep_gguf.batch.journal import journal_path
from acestep_gguf.batch.tasks import Entry, shown
from acestep_gguf.errors import BatchError
from acestep_gguf.vision.image_file import SUFFIXES
from acestep_gguf.vision.pdf import split_page

STDIN: Final = "-"


def entries_of(
    arguments: Iterable[str], *, recursive: bool, stdin: BinaryIO | None, output: Path | None = None
) -> Iterator[Entry]:
    """The pictures that ``arguments`` name, in their order; those of a folder or pattern in natural order.

    Each page of a PDF is a picture.

    Args:
        arguments: paths of pictures, folders, .jsonl and .csv tables, patterns such as ``"scans/*.jpg"``, and
            ``-`` for standard input, whose lines are paths or JSON objects.
        recursive: whether folders in folders count.
        stdin: standard input, if there is one.
        output: the table that is to be written; it and its journal may be named, as ``photos/*`` does, and
            are left out.

    Raises:
        BatchError: something is not there or has no picture, or a table is damaged.
    """
    own = set() if output is None else {output, journal_path(output)}
    for argument in arguments:
        if not argument:  # Python would take it for the current folder
            raise BatchError("a path is empty: give pictures, folders or tables.")
        if Path(argument) in own:
            continue
        if argument == STDIN:
            yield from _entries_of_lines(stdin)
        elif os.path.lexists(argument) or not glob.has_magic(argument):
            yield from _entries_of_path(Path(argument), recursive)
        else:
            for path in _matching(argument):
                if path not in own:
                    yield from _entries_of_path(path, recursive)


def natural(name: str | os.PathLike[str]) -> tuple[list[str | int], str]:
    """Sorts 2.jpg before 10.jpg, as people do."""
    text = os.fspath(name)
    parts = re.split(r"([0-9]+)", text)  # every other one is a number
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], text


def _matching(pattern: str) -> list[Path]:
    """Files, no folders: ``**`` matches what is in them, too."""
    found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)), key=natural)
    if not found:
        raise BatchError(f"no file matches {shown(pattern)}: give another pattern.")
    return list(map(Path, found))


def _entries_of_path(path: Path, recursive: bool) -> Iterator[Entry]:
    if path.is_dir():
        yield from _entries_of_folder(path, recursive)
    elif not os.path.lexists(split_page(path)[0]):
        raise BatchError(f"{shown(path)} is not there: give pictures, folders or tables.")
    elif (reader := READERS.get(path.suffix.lower())) is not None:
        yield from reader(path)
    else:
        yield from _entries_of_file(path)


def _entries_of_folder(folder: Path, recursive: bool) -> Iterator[Entry]:
    try:
        found = sorted(pictures_in(folder, recursive), key=natural)
    except OSError as error:
        name = shown(error.filename or folder)
        raise BatchError(f"{name} cannot be read ({error.strerror}): give another folder.") from error
    if not found:
        hint = "" if recursive else " -r takes those of the folders in it, too."
        raise BatchError(f"{shown(folder)} has no pictures.{hint}")
    for path in found:
        yield from _entries_of_file(path)


def pictures_in(folder: Path, recursive: bool) -> Iterator[Path]:
    """Hidden files are left out: many systems leave some beside pictures, under their names. So are files of
    other names, which would be errors; given by its name, any file is a picture."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    yield from pictures_in(Path(entry.path), recursive)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                yield Path(entry.path)


def _entries_of_lines(stdin: BinaryIO | None) -> Iterator[Entry]:
    if stdin is None:
        raise BatchError("standard input is closed: give paths there, one a line.")
    for number, line in lines(stdin, "standard input"):
        if line.startswith(b"{"):
            yield from entries_of_json(line, f"standard input:{number}", Path())
        else:
            yield from _entries_of_file(Path(os.fsdecode(line)))


def _entries_of_file(path: Path) -> Iterator[Entry]:
    for page in pages_of(path):
        yield Entry(shown(page), (page,))
