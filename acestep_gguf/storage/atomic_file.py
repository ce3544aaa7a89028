"""Writing a file so that its name has all of it or nothing new."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def partial_name(name: str) -> str:
    """Name of a file while it is written."""
    return f".{name}.partial"


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write ``parts``, one after another, under a name of their own, and rename that to ``path``.

    Nobody waits until what is not ``durable`` is on the disk: after a power failure it may be damaged.

    Raises:
        OSError: it cannot be written; nothing is left behind, and what ``path`` was it still is.
    """
    temporary = path.with_name(partial_name(f"{path.name}.{secrets.token_hex(4)}"))
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
