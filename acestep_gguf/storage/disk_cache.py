"""A folder of entries under names that say all about their contents; the least recently used are given up.

An entry is a file: a magic word, the SHA-256 of its name and contents, the contents. What is damaged, cut
short or another file under that name does not have the right hash: it is thrown away, and computed again.
A hash does not tell who wrote it, so an entry counts only if nobody but its owner can have written it.
Several processes may use a folder at once. Nothing that goes wrong here is an error: it costs time, and a
UserWarning says so once.

Not a cache library: the usual one, diskcache, unpickles what its database tells it to, and hashes nothing.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import UsageError
from acestep_gguf.sizes import parse_size
from acestep_gguf.storage.atomic_file import PRIVATE, write_atomically
from acestep_gguf.storage.cache_folder import cache_folder

UInt8Array = npt.NDArray[np.uint8]

MAGIC: Final = b"ace-kept"
HEADER_BYTES: Final = len(MAGIC) + 32
# Of an entry, and of one that is being written, or was by a process that is gone.
ENTRY_NAME: Final = re.compile(r"[a-z]+-[0-9a-f]{64}")
PARTIAL_NAME: Final = re.compile(r"\.[a-z]+-[0-9a-f]{64}\..*partial")
ABANDONED_AFTER_S: Final = 3600.0

ROOT: Final = 0
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

LIMIT_VARIABLE: Final = "ACESTEP_GGUF_CACHE_LIMIT"
DEFAULT_LIMIT: Final = 4 * 2**30
SHARE_OF_DISK: Final = 0.1


def default_folder() -> Path:
    """Where image embeds and states after pictures are kept, unless somebody says otherwise."""
    return cache_folder() / "pictures"


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in the folder of a cache; ``limit`` is how many ``bytes`` there may be."""

    entries: int
    bytes: int
    limit: int


class DiskCache:
    """A cache in ``folder``, which is made when something is written, for its owner only.

    Args:
        folder: where entries are. A folder that is there keeps its permissions, and files in it that are not
            named as entries are are left alone.
        limit: bytes of all entries together; by default what ACESTEP_GGUF_CACHE_LIMIT says, or 4 GiB, but at
            most a tenth of the disk space that is free or taken by entries.

    Raises:
        UsageError: ACESTEP_GGUF_CACHE_LIMIT is not a size, or ``folder`` cannot be a path.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        if "\0" in str(folder):
            raise UsageError("the name of the cache folder has a null character in it: give another one.")
        self.folder = folder
        self._limit = limit if limit is not None else _limit_from_environment()
        self._waiting: list[tuple[str, Sequence[memoryview]]] = []
        self._writers: list[Thread] = []
        self._write_error: OSError | None = None
        self._has_warned = False

    def limit(self) -> int:
        """Bytes of all entries together, at most; 0 if the folder cannot be reached."""
        if self._limit is not None:
            return self._limit
        try:
            folders = (self.folder, *self.folder.parents)
            folder = next((folder for folder in folders if folder.is_dir()), self.folder)
            taken = sum(status.st_size for _, status in self._files())
            return min(DEFAULT_LIMIT, int(SHARE_OF_DISK * (shutil.disk_usage(folder).free + taken)))
        except OSError as error:
            self._warn(error)
            return 0

    def get(self, name: str) -> UInt8Array | None:
        """Contents of the entry ``name``, uint8 [n], or None if there is no sound one."""
        path = self.folder / name
        try:
            entry = _read(path, self.limit())
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            self._warn(error)
            return None
        if entry[:HEADER_BYTES].tobytes() != _header(name, [entry[HEADER_BYTES:].data]):
            _remove(path)
            return None
        _mark_as_used(path)
        return entry[HEADER_BYTES:]

    def takes(self, n_bytes: int) -> bool:
        """Whether contents of so many bytes have room at all."""
        return HEADER_BYTES + n_bytes <= self.limit()

    def put(self, name: str, *parts: npt.NDArray[np.generic]) -> None:
        """Keep the bytes of ``parts``, one after another, as the entry ``name``, when ``write`` is called.

        They must not be changed any more.
        """
        views = [np.ascontiguousarray(part).reshape(-1).view(np.uint8).data for part in parts]
        self._waiting.append((name, views))

    def write(self) -> None:
        """Begin to write what was put; it goes on in the background, until it is done or ``close`` is."""
        self._writers = [writer for writer in self._writers if writer.is_alive()]
        if self._waiting:
            writer = Thread(target=self._write, args=(self._waiting,), name="disk cache")
            self._waiting = []
            writer.start()
            self._writers.append(writer)

    def finish_writing(self) -> None:
        """Wait until all that ``write`` began is written: its memory is free then."""
        for writer in self._writers:
            writer.join()

    def close(self) -> None:
        """Write what was put, and wait for it."""
        self.write()
        self.finish_writing()
        if self._write_error is not None:
            self._warn(self._write_error)  # not before: an answer may have been on the screen

    def contents(self) -> Contents:
        """How many entries there are, and their size."""
        try:
            sizes = [status.st_size for path, status in self._files() if ENTRY_NAME.fullmatch(path.name)]
        except OSError as error:
            self._warn(error)
            sizes = []
        return Contents(len(sizes), sum(sizes), self.limit())

    def clear(self) -> None:
        """Remove all entries.

        Raises:
            OSError: the folder cannot be read, or an entry cannot be removed.
        """
        for path, _ in self._files():
            path.unlink(missing_ok=True)

    def _write(self, waiting: Sequence[tuple[str, Sequence[memoryview]]]) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, parts in waiting:
                n_bytes = HEADER_BYTES + sum(map(len, parts))
                limit = self.limit()
                if n_bytes <= limit:
                    self._shrink(limit - n_bytes)
                    path, header = self.folder / name, _header(name, parts)
                    write_atomically(path, [header, *parts], durable=False, mode=PRIVATE)
        except OSError as error:  # a full disk, or a folder that is not ours to write
            self._write_error = error

    def _shrink(self, limit: int) -> None:
        """Remove entries, the least recently used first, until at most ``limit`` bytes are left.

        Another process may do the same at the same time: each file is removed by one of them.
        """
        files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        taken = sum(status.st_size for _, status in files)
        for path, status in files:
            is_entry = ENTRY_NAME.fullmatch(path.name) is not None
            abandoned = not is_entry and time.time() - status.st_mtime > ABANDONED_AFTER_S
            if abandoned or (is_entry and taken > limit):
                path.unlink(missing_ok=True)
                taken -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Entries, and files that will be or were to be one; OSError if the folder cannot be read."""
        try:
            found = list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in found:
            if ENTRY_NAME.fullmatch(path.name) or PARTIAL_NAME.fullmatch(path.name):
                try:
                    yield path, path.lstat()
                except FileNotFoundError:  # another process removed it
                    continue

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the cache folder {self.folder} cannot be used ({error.strerror}), so answers take longer: "
                "check it, or choose another one.",
                stacklevel=2,
            )


def _read(path: Path, most_bytes: int) -> UInt8Array:
    """The whole of a file; empty if it is longer than ``most_bytes``, or a folder, pipe or device.

    Raises:
        OSError: it cannot be read, or others may have written it.
    """
    # Opening must not wait, as it would for a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
            return np.empty(0, np.uint8)
        if status.st_uid not in (os.geteuid(), ROOT) or status.st_mode & WRITABLE_BY_OTHERS:
            raise PermissionError(errno.EPERM, "others may have written an entry in it")
        data = np.empty(status.st_size, np.uint8)
        n_read = 0
        while n_read < len(data) and (count := file.readinto(data[n_read:].data)):
            n_read += count
    return data[:n_read]


def _header(name: str, parts: Sequence[memoryview]) -> bytes:
    hashed = hashlib.sha256(name.encode() + b"\0")
    for part in parts:
        hashed.update(part)
    return MAGIC + hashed.digest()


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:  # then it is replaced, or found to be unsound again
        return


def _mark_as_used(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # a folder that is only to be read: nothing is given up there
        return


def _limit_from_environment() -> int | None:
    text = os.environ.get(LIMIT_VARIABLE, "")
    return parse_size(text, LIMIT_VARIABLE) if text else None
