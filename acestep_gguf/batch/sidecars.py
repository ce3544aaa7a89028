"""Answers beside their pictures: ``photo.txt`` or ``photo.json`` for ``photo.jpg``, as trainers take them.

Those of a PDF's pages are ``scan-page1.txt`` and so on.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from acestep_gguf.batch.journal import Journal
from acestep_gguf.batch.rows import Row, table_row
from acestep_gguf.batch.tasks import Task, shown
from acestep_gguf.errors import BatchError
from acestep_gguf.storage.atomic_file import remove_partial, write_atomically
from acestep_gguf.vision.pdf import split_page

SidecarKind = Literal["txt", "json"]
SIDECAR_KINDS: Final[tuple[SidecarKind, ...]] = ("txt", "json")


def check_sidecars(tasks: Iterable[Task], kind: SidecarKind, journal: Journal) -> None:
    """Check that each answer has a file of its own, and that nobody else's is replaced.

    Raises:
        BatchError: two answers would go into one file, or a file is in the way.
    """
    taken: dict[Path, Task] = {}
    for task in tasks:
        if (path := _path(task, kind)) is None:
            continue
        if (other := taken.setdefault(path, task)) is not task:
            raise BatchError(
                f"the answers about {shown(other.images[0])} and {shown(task.images[0])} would both become "
                f"{shown(path)}: leave out sidecar, or ask one question a picture, and name pictures apart.",
                settings=["sidecar"],
            )
        is_own = journal.replaces_sidecars or (task in journal and not journal.is_error(task))
        if path in task.images or (os.path.lexists(path) and not is_own):
            raise BatchError(
                f"{shown(path)} is there already: move it away, or leave out sidecar.", settings=["sidecar"]
            )


def write_sidecar(task: Task, row: Row, kind: SidecarKind, *, is_data: bool) -> None:
    """Write the answer of ``row``, if it is one, beside the first picture of ``task``.

    As ``txt`` it is its text, as ``json`` the cells of the row, as in the table.

    Raises:
        BatchError: it cannot be written.
    """
    if (path := _path(task, kind)) is None or row.text is None:
        return
    if kind == "txt":
        data = f"{row.text}\n".encode()
    else:
        data = msgspec.json.encode(table_row(row, task, is_data=is_data, taken=())) + b"\n"
    try:
        write_atomically(path, [data])
    except OSError as error:
        raise BatchError(
            f"{shown(path)} cannot be written ({error.strerror}): make room; the same command carries on."
        ) from error


def finish_sidecars(tasks: Sequence[Task], kind: SidecarKind, journal: Journal, *, is_data: bool) -> None:
    """Write those of answers that were kept when a process was killed, and remove what it left unfinished."""
    remove_partial(path for task in tasks if (path := _path(task, kind)) is not None)
    for task in tasks:
        if (path := _path(task, kind)) is not None and not os.path.lexists(path):
            write_sidecar(task, journal.row(task), kind, is_data=is_data)


def _path(task: Task, kind: SidecarKind) -> Path | None:
    if not task.images:
        return None
    picture, page = split_page(task.images[0])
    name = picture.stem if page is None else f"{picture.stem}-page{page}"
    return picture.parent / f"{name}.{kind}"
