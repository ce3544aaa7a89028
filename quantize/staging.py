"""Files under temporary names: all of them get their final name, or none does.

A process that dies leaves partial files behind, never a file that looks finished. Those that are made in
steps have a journal beside them, with which the next run carries on.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from acestep_gguf.errors import BundleError, MissingPackageError, SourceLostError
from acestep_gguf.quantize.journal import Journal, Step
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import LOCK_FILE, journal_path

try:
    from filelock import FileLock, Timeout
except ModuleNotFoundError as error:
    raise MissingPackageError("filelock") from error

HASHED_AT_ONCE: Final = 2**22
DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

OnWrite = Callable[[int, int], None]


class StagedFile:
    """A file that is written from its beginning to its end, and hashed on the way.

    ``on_write`` is called with the number of bytes, and of steps, after each write and each step.
    """

    def __init__(self, path: Path, on_write: OnWrite) -> None:
        self.path = path
        self.n_bytes = 0
        self.n_steps = 0
        self._hash = hashlib.sha256()
        self._on_write = on_write
        self._is_published = False
        # Unbuffered: chunks are large, and closing after a full disk must not try to write again.
        self._file = os.fdopen(os.open(self.partial_path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self._resume()

    @property
    def partial_path(self) -> Path:
        """Where the bytes are until the file is published."""
        return self.path.with_name(partial_name(self.path.name))

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
        self._on_write(view.nbytes, 0)

    def pad_to(self, offset: int) -> None:
        """Append zeros up to ``offset``."""
        self.write(bytes(offset - self.n_bytes))

    def end_step(self) -> None:
        """Say that what was written since the last step is whole."""
        self.n_steps += 1
        self._on_write(0, 1)

    def close(self) -> None:
        """Write the bytes through to the disk, and close the file."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Give the file, which is closed, its final name."""
        self.partial_path.replace(self.path)
        self._is_published = True

    def abandon(self, *, keep: bool) -> None:
        """Close the file after a failure and remove it, unless its steps are worth keeping."""
        self._file.close()
        if not (keep and self.is_resumable):
            (self.path if self._is_published else self.partial_path).unlink(missing_ok=True)

    @property
    def is_resumable(self) -> bool:
        """Whether a later run can carry on with it."""
        return False

    def _resume(self) -> None:
        self._file.truncate(0)


class ResumableFile(StagedFile):
    """A file that is made in steps, and keeps those that are whole.

    ``identity`` stands for everything that decides its bytes, but for the sources of the steps; ``stamps``
    are the states of these, step by step. What was made from another state is made again.
    """

    def __init__(self, path: Path, on_write: OnWrite, *, identity: str, stamps: Sequence[str]) -> None:
        self._journal = Journal(journal_path(path), identity)
        self._stamps = stamps
        self._finished = self._finished_hash(path)
        super().__init__(path, on_write)

    @property
    def partial_path(self) -> Path:
        """Where the bytes are until the file is published; what an earlier run published stays there."""
        return self.path if self._finished else super().partial_path

    def end_step(self) -> None:
        """Say that what was written since the last step is whole, and write it down."""
        self._journal.append(Step(self.n_steps, self._stamps[self.n_steps], self.n_bytes, self.sha256))
        super().end_step()

    @property
    def is_resumable(self) -> bool:
        return self.n_steps > 0

    def abandon(self, *, keep: bool) -> None:
        """Close the file after a failure and remove it, unless its steps are worth keeping."""
        super().abandon(keep=keep or self._finished is not None)
        if keep and self.is_resumable:
            self._journal.close()
        else:
            self.forget_journal()

    def forget_journal(self) -> None:
        """Remove the journal."""
        self._journal.close()
        self._journal.path.unlink(missing_ok=True)

    def _finished_hash(self, path: Path) -> "hashlib._Hash | None":
        """Hash of ``path`` if an earlier run was killed after it had published this very file, else None.

        Any other file of that name is somebody's, and stays as it is until this one is published.
        """
        steps = self._journal.steps
        if not steps or [step.stamp for step in steps] != list(self._stamps):
            return None
        try:
            if path.with_name(partial_name(path.name)).exists() or path.stat().st_size != steps[-1].n_bytes:
                return None
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError:
            return None
        return digest if digest.hexdigest() == steps[-1].sha256 else None

    def _resume(self) -> None:
        """Hash what is there up to the last step that is true, and cut off the rest."""
        if self._finished:
            self._hash = self._finished
            self.n_bytes, self.n_steps = self._journal.steps[-1].n_bytes, len(self._stamps)
            self._journal.keep(self.n_steps)
            self._on_write(self.n_bytes, self.n_steps)
            return
        for step, stamp in zip(self._journal.steps, self._stamps, strict=False):
            digest = self._hash.copy()
            if step.stamp != stamp or not self._hash_up_to(step.n_bytes, digest):
                break
            if digest.hexdigest() != step.sha256:
                break
            self._hash, self.n_bytes, self.n_steps = digest, step.n_bytes, self.n_steps + 1
        self._file.truncate(self.n_bytes)
        self._file.seek(self.n_bytes)
        self._journal.keep(self.n_steps)
        self._on_write(self.n_bytes, self.n_steps)

    def _hash_up_to(self, end: int, digest: "hashlib._Hash") -> bool:
        """Add the bytes from ``n_bytes`` to ``end``; False if there are not so many."""
        left = end - self.n_bytes
        while left > 0 and (data := self._file.read(min(left, HASHED_AT_ONCE))):
            digest.update(data)
            left -= len(data)
        return left == 0


class Notes(ResumableFile):
    """A file that is of use to a later run only: when the others are published, it is removed."""

    def publish(self) -> None:
        """Remove the file, which is closed."""
        self.partial_path.unlink()


class Staging:
    """Context in which the files of a folder are made; no other process can enter it for the same folder.

    Leaving it with an exception removes every file, and the folders, that it created. Resumable files stay
    when the same conversion may succeed later: after a full disk, a lost source, Ctrl-C. A full disk and
    other failures to write become BundleError.
    """

    def __init__(self, folder: Path, on_write: OnWrite | None = None) -> None:
        self.folder = folder
        self._on_write = on_write or (lambda _n_bytes, _n_steps: None)
        self._lock = FileLock(folder / LOCK_FILE, blocking=False)
        self._files: list[StagedFile] = []
        self._created_folders: list[Path] = []

    def __enter__(self) -> Self:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self._created_folders.append(path)
            self._lock.acquire()
        except Timeout as error:
            raise BundleError(
                f"another process is writing to {self.folder}: wait for its end, or choose another folder."
            ) from error
        except OSError as error:
            self._remove_created_folders()
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._forget_journals()
            else:
                may_succeed_later = isinstance(error, OSError | SourceLostError | KeyboardInterrupt)
                for file in self._files:
                    file.abandon(keep=may_succeed_later)
        finally:
            # Unlinked while it is held: who waits for it finds out, and takes a new one.
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            self._lock.release()
            if error is not None:
                self._remove_created_folders()
        if isinstance(error, OSError):
            raise self._cannot_write(error) from error

    def create(self, name: str) -> StagedFile:
        """Begin to write the file ``name``."""
        file = StagedFile(self.folder / name, self._on_write)
        self._files.append(file)
        return file

    def create_resumable(self, name: str, *, identity: str, stamps: Sequence[str]) -> StagedFile:
        """Begin the file ``name``, or carry on with it; see ResumableFile."""
        file = ResumableFile(self.folder / name, self._on_write, identity=identity, stamps=stamps)
        self._files.append(file)
        return file

    def create_notes(self, name: str, *, identity: str, stamps: Sequence[str]) -> StagedFile:
        """Begin the notes ``name``, or carry on with them; ``on_write`` does not count them."""
        file = Notes(self.folder / name, lambda _n_bytes, _n_steps: None, identity=identity, stamps=stamps)
        self._files.append(file)
        return file

    def publish(self) -> None:
        """Bring all files to the disk, then give them their final names."""
        for file in self._files:
            file.close()
        for file in self._files:
            file.publish()
        sync_folder(self.folder)

    def _forget_journals(self) -> None:
        for file in self._files:
            if isinstance(file, ResumableFile):
                file.forget_journal()

    def _remove_created_folders(self) -> None:
        with suppress(OSError):  # until one is not empty
            for folder in reversed(self._created_folders):
                folder.rmdir()

    def _cannot_write(self, error: OSError) -> BundleError:
        kept = any(file.is_resumable for file in self._files)
        what_to_do = "free disk space" if error.errno in DISK_FULL else "check the folder's permissions"
        carry_on = ", then the same command carries on," if kept else ""
        return BundleError(
            f"{self.folder} cannot be written ({error.strerror or error}): "
            f"{what_to_do}{carry_on} or choose another folder."
        )


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
