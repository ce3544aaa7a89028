"""Pictures as a shell gives them: several after one ``-i``, a folder, a pipe, standard input."""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acestep_gguf.errors import ImageError, UsageError

if TYPE_CHECKING:
    from acestep_gguf.bundle.image_spec import ImageSpec

FLAGS = ("-i", "--image")
STDIN = Path("-")


def one_flag_each(arguments: Sequence[str]) -> list[str]:
    """The arguments with an ``--image`` before each picture.

    What follows a flag is a picture, a PDF or a folder of them. After it, arguments are pictures up to the
    first that is not a file.

    Raises:
        UsageError: a folder cannot be read, or has no picture.
        ImageError: a PDF is encrypted or damaged, or a picture is in a network.
        MissingPackageError: there is a PDF, and pypdfium2 is not installed.
    """
    given: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*given, argument, *left]
        if argument not in FLAGS or not left:
            given.append(argument)
            continue
        first = left.pop(0)
        if first.startswith(("http://", "https://")):
            raise ImageError(f"{first} is not loaded from a network: save it, and give its path.")
        pictures = pictures_in_folders([first])
        while left and _is_file(left[0]):
            pictures.append(left.pop(0))
        for picture in pictures:
            for page in _pages(picture):
                given += ["--image", page]
    return given


def pictures_in_folders(arguments: Iterable[str]) -> list[str]:
    """The arguments, with the pictures of a folder in its place.

    Raises:
        UsageError: a folder cannot be read, or has no picture.
    """
    return [
        picture
        for argument in arguments
        for picture in (_pictures_in(argument) if os.path.isdir(argument) else [argument])
    ]


def picture_from(path: Path) -> Path | bytes:
    """``path``, or the bytes of the picture on standard input (``-``) or in a pipe.

    Raises:
        ImageError: it cannot be read.
    """
    from acestep_gguf.prompt.image_source import MAX_IMAGE_BYTES

    if path == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise ImageError("there is no picture on standard input: give the path of one.")
        return sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
    try:
        if not stat.S_ISFIFO(path.stat().st_mode):
            return path
        with path.open("rb") as pipe:
            return pipe.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError):
        return path  # whoever opens it says what is wrong


def fewer_tiles(image: "ImageSpec", n_pictures: int, n_tokens: int) -> list[str]:
    """What ``--max-tiles`` would save, on a line, if pictures that took ``n_tokens`` were cut up."""
    from acestep_gguf.vision.tiling import tiling_of

    n_whole = n_pictures * tiling_of(image, max_tiles=1, n_pictures=n_pictures).most()[1]
    if image.tiles is None or n_tokens <= n_whole:
        return []
    return [f"[pictures took {n_tokens} tokens; --max-tiles 1 would take {n_whole}, and see less detail]"]


def _pages(picture: str) -> list[str]:
    """Of a PDF that is there; of anything else, itself."""
    if not (picture.lower().endswith(".pdf") and _is_file(picture)):
        return [picture]
    from acestep_gguf.vision.image_file import pdf_pages

    return list(map(str, pdf_pages(picture)))


def _is_file(argument: str) -> bool:
    from acestep_gguf.vision.pdf import split_page

    try:
        mode = split_page(Path(argument))[0].stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _pictures_in(folder: str) -> list[str]:
    from acestep_gguf.batch.inputs import natural, pictures_in

    try:
        found = sorted(pictures_in(Path(folder), recursive=False), key=natural)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}): give pictures.") from error
    if not found:
        raise UsageError(f"{folder} has no pictures in it: give another folder, or pictures.")
    return [str(path) for path in found]
