"""Writing a file so that its name has all of it or nothing new."""

import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

PRIVATE: Final = 0o600


def partial_name(name: str) -> str:
    """Name of a file while it is written."""
    return f".{name}.partial"


@contextmanager
def opened_atomically(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file under a name of its own, which is renamed to ``path`` when the block ends without an error.

    Args:
        path: file to write or to replace.
        durable: whether to wait until it is on the disk; otherwise it may be damaged after a power failure.
        mode: permissions, from which the umask is taken: ``PRIVATE`` for what is nobody else's business.

    Raises:
        OSError: it cannot be written; nothing is left behind, and what ``path`` was it still is.
    """
    temporary = path.with_name(partial_name(f"{path.name}.{secrets.token_hex(4)}"))
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_partial(paths: Iterable[Path]) -> None:
    """Remove what processes left that were killed while they wrote ``paths``, which nobody writes now."""
    names: defaultdict[Path, set[str]] = defaultdict(set)
    for path in paths:
        names[path.parent].add(path.name)
    for folder in names:
        for left in folder.glob(partial_name("*.*")):
            if left.name.removeprefix(".").rsplit(".", 2)[0] in names[folder]:
                with suppress(OSError):
                    left.unlink()


def write_atomically(
    path: Path, parts: Iterable[bytes | memoryview], *, durable: bool = True, mode: int = 0o666
) -> None:
    """Write ``parts``, one after another, as ``opened_atomically`` does."""
    with opened_atomically(path, durable=durable, mode=mode) as file:
        for part in parts:
            file.write(part)
