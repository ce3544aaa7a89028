"""Paths as a person types them, completes them with Tab, or drops them on a terminal."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# As terminals write a file that is dropped on them: a word of a shell, from / or ~.
DROPPED: Final = re.compile(
    r"""(?<!\S)(?=['"]?/|~/)(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s\\'"])+(?!\S) ?""", re.DOTALL
)
MOST_CHARACTERS: Final = 2**14
LAST_WORD: Final = re.compile(r"(?:\\.|\S)*$")


def typed_path(text: str) -> Path:
    """A path as typed, from ~ or not, or as a terminal writes a dropped file: quoted or with backslashes."""
    if len(text) <= MOST_CHARACTERS and not os.path.exists(text):
        with suppress(ValueError):  # a quote that does not end, as in John's.png
            words = shlex.split(text)
            text = words[0] if len(words) == 1 else text
    return Path(os.path.expanduser(text))


def without_dropped_pictures(question: str) -> tuple[str, list[Path]]:
    """``question`` without the pictures that were dropped into it, and those."""
    from acestep_gguf.vision.image_file import SUFFIXES

    pictures: list[Path] = []

    def take(found: re.Match[str]) -> str:
        path = typed_path(found[0].strip(" "))
        if path.suffix.lower() not in SUFFIXES or not os.path.isfile(path):
            return found[0]
        pictures.append(path)
        return ""

    return DROPPED.sub(take, question).strip(), pictures


def completed_paths(text: str) -> list[str]:
    """Paths that begin with ``text``; a folder's ends with a slash. Hidden ones have to be asked for."""
    folder, name = os.path.split(text)
    return sorted(
        os.path.join(folder, entry) + ("/" if is_folder else "")
        for entry, is_folder in _entries(os.path.expanduser(folder) or ".")
        if entry.startswith(name) and (not entry.startswith(".") or name.startswith("."))
    )


def completed_last_path(line: str) -> list[str]:
    """What ``line`` may become whose last word is the beginning of a path from / or ~."""
    word = LAST_WORD.search(line)
    if word is None or not word[0].startswith(("/", "~/")):
        return []
    before = line[: word.start()]
    paths = completed_paths(re.sub(r"\\(.)", r"\1", word[0]))
    return [before + re.sub(r"([\s\\'\"])", r"\\\1", path) for path in paths]


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir()
