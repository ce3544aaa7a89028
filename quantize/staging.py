"""Files under temporary names: all of them get their final name, or none is left."""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from acestep_gguf.errors import BundleError

PARTIAL_SUFFIX = ".partial"


class StagedFile:
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._hash = hashlib.sha256()
        # Unbuffered: chunks are large, and closing after a full disk must not try to write again.
        self._file = self.partial_path.open("wb", buffering=0)

    @property
    def partial_path(self) -> Path:
        """Where the bytes are until the file is published."""
        return self.path.with_name(f".{self.path.name}{PARTIAL_SUFFIX}")

    @property
    def sha256(self) -> str:
        """Hash of the bytes written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``; a memoryview must be contiguous."""
        view = memoryview(data).cast("B")
        written = 0
        while written < view.nbytes:
            written += self._file.write(view[written:])
        self._hash.update(view)
        self.n_bytes += view.nbytes

    def pad_to(self, offset: int) -> None:
        """Append zeros up to ``offset``."""
        self.write(bytes(offset - self.n_bytes))

    def close(self) -> None:
        """Bring the bytes to the disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Close and remove what was written, unless it was published."""
        self._file.close()
        self.partial_path.unlink(missing_ok=True)


class Staging:
    """Context in which the files of a folder are made.

    Leaving it with an exception removes every file, and the folders, that it created. A full disk and other
    failures to write become BundleError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[StagedFile] = []
        self._published: list[Path] = []
        self._created_folders: list[Path] = []

    def __enter__(self) -> Self:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir()
                self._created_folders.append(path)
        except OSError as error:
            self._clean_up()
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        self._clean_up()
        if isinstance(error, OSError):
            raise self._cannot_write(error) from error

    def create(self, name: str) -> StagedFile:
        """Begin the file ``name``."""
        file = StagedFile(self.folder / name)
        self._files.append(file)
        return file

    def publish(self) -> None:
        """Bring all files to the disk, then give them their final names."""
        for file in self._files:
            file.close()
        for file in self._files:
            file.partial_path.replace(file.path)
            self._published.append(file.path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _clean_up(self) -> None:
        for file in self._files:
            file.discard()
        for path in self._published:
            path.unlink(missing_ok=True)
        for folder in reversed(self._created_folders):
            folder.rmdir()

    def _cannot_write(self, error: OSError) -> BundleError:
        return BundleError(
            f"{self.folder} cannot be written ({error.strerror or error}): "
            "free disk space or choose another folder."
        )
