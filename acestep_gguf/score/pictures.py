"""Pictures of benchmarks where they are: a file in a folder, or a cell of a TSV file."""

import binascii
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from acestep_gguf.errors import BenchmarkError, ImageError
from acestep_gguf.prompt.image_source import MAX_IMAGE_BYTES
from acestep_gguf.vision.image_file import read_file

MAX_BASE64_BYTES: Final = MAX_IMAGE_BYTES // 3 * 4 + 1024


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file of a benchmark's folder."""

    path: Path

    @property
    def key(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        return read_file(self.path)


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture in base64: ``length`` bytes of ``path`` from ``offset`` on, whose hash is ``key``."""

    path: Path
    offset: int
    length: int
    key: str

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return binascii.a2b_base64(file.read(self.length), strict_mode=True)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read ({error.strerror}): give it again.") from error
        except ValueError as error:
            raise ImageError(
                f"{self.path} has a picture whose base64 is damaged ({error}): fetch the file again."
            ) from error


def picture_file(folders: tuple[Path, ...], name: str, where: str) -> PictureFile:
    """The file that a benchmark calls ``name``, in the first of ``folders`` that has it.

    It need not be there, which shows when it is read.

    Raises:
        BenchmarkError: ``name`` leads out of the folders.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0] == "/" or PureWindowsPath(name).anchor or "\0" in name:
        raise BenchmarkError(f"{where} has the picture {name[:100]!r}, which is no path in its folder.")
    paths = [folder / name for folder in folders]
    return PictureFile(next((path for path in paths if path.is_file()), paths[0]))
