"""What a decoder reads for an imatrix: pictures with questions, and answers where they are known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from acestep_gguf.batch.input_tables import MAX_IMAGES, lines
from acestep_gguf.batch.inputs import entries_of
from acestep_gguf.errors import ImatrixError

MAX_SAMPLES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt about pictures; ``answer`` is None if the decoder is to write it."""

    images: tuple[Path, ...]
    prompt: str
    answer: str | None = None


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    images: list[str] = []
    answer: str | None = None


def picture_samples(pictures: Iterable[str], questions: Sequence[str]) -> list[Sample]:
    """Each of ``questions`` about each picture.

    Args:
        pictures: files, folders, patterns and tables, as ``batch`` takes them.
        questions: about those that come without their own.

    Raises:
        BatchError: one is not there, or a table is damaged.
    """
    samples = []
    for entry in entries_of(pictures, recursive=False, stdin=None):
        asked = questions if entry.prompt is None else (entry.prompt,)
        samples += [Sample(entry.images, question) for question in asked]
    return samples


def read_samples(path: Path) -> list[Sample]:
    """The rows of a file of JSON objects ``{"images": […], "prompt": …, "answer": …}``, one a line.

    Paths start from its folder. Without images a row is text alone, without an answer the decoder writes it.

    Raises:
        ImatrixError: it cannot be read, or a row is not such an object.
        BatchError: a line is too long.
    """
    try:
        with path.open("rb") as file:
            return [_sample(line, f"{path}:{number}", path.parent) for number, line in lines(file, str(path))]
    except OSError as error:
        raise ImatrixError(f"{path} cannot be read ({error.strerror}): give another file.") from error


def _sample(line: bytes, where: str, folder: Path) -> Sample:
    try:
        row = msgspec.json.decode(line, type=_Row)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImatrixError(
            f"{where} is no object with images, prompt and answer ({error}): correct it."
        ) from error
    if len(row.images) > MAX_IMAGES:
        raise ImatrixError(f"{where} has {len(row.images)} pictures: give {MAX_IMAGES} at most.")
    return Sample(tuple(folder / image for image in row.images), row.prompt, row.answer)
