"""A control group of memory, of version 1 or 2, in which programs are run; needs the right to make one."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# By version: the folder that has groups of memory, a group's limit and its peak.
VERSIONS: Final = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)

_numbers = itertools.count()


@dataclass(frozen=True)
class MemoryGroup:
    """A group that has nothing but what is run in it."""

    folder: Path
    limit_file: Path
    peak_file: Path

    def limit(self, n_bytes: int) -> None:
        """Let what is in the group have so much memory."""
        self.limit_file.write_text(str(n_bytes))

    def command(self, *words: str) -> list[str]:
        """The same command, run in the group; its process keeps its number."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *words]

    @property
    def peak(self) -> int:
        """Bytes that the group had at most, pages of files among them."""
        return int(self.peak_file.read_text())


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group without a limit of its own, which is gone afterwards.

    Raises:
        OSError: no control group of memory can be made here.
    """
    found = [version for version in VERSIONS if (version[0] / "cgroup.procs").exists()]
    if not found:
        raise OSError("there are no control groups of memory")
    parent, limit, peak = found[0]
    folder = parent / f"acestep-gguf-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield MemoryGroup(folder, folder / limit, folder / peak)
    finally:
        folder.rmdir()
