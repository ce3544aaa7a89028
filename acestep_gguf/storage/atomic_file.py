"""Writing a file so that its name has all of it or nothing new."""

import glob
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

PRIVATE: Final = 0o600
TOKEN_BYTES: Final = 4


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
    temporary = path.with_name(partial_name(f"{path.name}.{secrets.token_hex(TOKEN_BYTES)}"))
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


def remove_partial(path: Path) -> None:
    """Remove what killed processes left that were writing ``path``; nobody may be writing it now."""
    pattern = partial_name(f"{glob.escape(path.name)}.{'[0-9a-f]' * 2 * TOKEN_BYTES}")
    for left in path.parent.glob(pattern):
        left.unlink(missing_ok=True)


def write_atomically(
    path: Path, parts: Iterable[bytes | memoryview], *, durable: bool = True, mode: int = 0o666
) -> None:
    """Write ``parts``, one after another, as ``opened_atomically`` does."""
    with opened_atomically(path, durable=durable, mode=mode) as file:
        for part in parts:
            file.write(part)
