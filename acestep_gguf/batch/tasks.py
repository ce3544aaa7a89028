"""What a batch is to do: a task is one question about pictures, and becomes one row of the table."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from acestep_gguf.errors import BatchError

# All of them are in memory, about a kilobyte each, so that the table comes out in their order.
MAX_TASKS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Pictures as the inputs name them, by default a picture's path being its ``id``.

    ``prompt`` is their own question, if they have one, ``fields`` what is carried through into the table.
    """

    id: str | int
    images: tuple[Path, ...]
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """One question about pictures; its ``key`` is its own within a batch, and the same next time."""

    key: str
    id: str | int
    images: tuple[Path, ...]
    prompt: str
    fields: Mapping[str, Any]

    @property
    def path(self) -> str | list[str] | None:
        """Where the picture lies, or where the pictures lie."""
        paths = [shown(path) for path in self.images]
        return paths if len(paths) > 1 else next(iter(paths), None)


def tasks_of(entries: Iterable[Entry], prompts: Sequence[str]) -> list[Task]:
    """The tasks of ``entries``, each asked its own prompt, or else each of ``prompts``.

    Raises:
        BatchError: there is nothing to ask, or far too much.
    """
    tasks: list[Task] = []
    for task in _each(entries, prompts):
        tasks.append(task)
        if len(tasks) > MAX_TASKS:
            raise BatchError(f"there are more than {MAX_TASKS:,} questions: ask them in several batches.")
    if not tasks:
        raise BatchError("there is no picture: give files, folders or tables.")
    return tasks


def _each(entries: Iterable[Entry], prompts: Sequence[str]) -> Iterator[Task]:
    seen: Counter[bytes] = Counter()
    for entry in entries:
        asked = prompts if entry.prompt is None else (entry.prompt,)
        if not asked:
            raise BatchError(
                f"there is no question about {shown(entry.id)}: give a prompt.", settings=["prompt"]
            )
        for prompt in asked:
            what = _digest(
                [entry.id, [os.fsencode(path) for path in entry.images], prompt.encode(errors="replace")]
            )
            # A picture that is given twice is asked about twice.
            key = _digest([what, seen[what]]).hex()
            seen[what] += 1
            yield Task(key, entry.id, entry.images, prompt, entry.fields)


def shown(name: str | int | os.PathLike[str]) -> str:
    """A name for people and tables: what is no Unicode in a path is shown as �."""
    return os.fsencode(str(name)).decode(errors="replace")


def _digest(parts: Sequence[Any]) -> bytes:
    return hashlib.sha256(msgspec.json.encode(parts)).digest()[:16]
