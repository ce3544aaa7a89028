"""Telling that a file is still the one that it was, without reading it."""

import time
from pathlib import Path
from typing import Final

# Clocks of file systems tick rarely, FAT's each two seconds; between two ticks a file can change unnoticed.
LONGEST_TICK_NS: Final = 2 * 10**9


def file_identity(path: Path) -> tuple[str, int, int]:
    """Name, bytes, and when it was last changed, in nanoseconds; hashing a model takes too long."""
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def file_state(path: Path) -> tuple[int, ...] | None:
    """Another one whenever the contents of ``path`` are, within one process.

    None if there is nothing, or it changed so lately that another change could leave the same times.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < LONGEST_TICK_NS:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
