"""A schema or a grammar, given as text or in a file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from acestep_gguf.errors import UsageError

MAX_BYTES: Final = 2**20


def text_or_file(option: str, source: str | os.PathLike[str], *, is_text: Callable[[str], bool]) -> str:
    """``source`` itself if it is text, otherwise what is in the file of this name.

    Raises:
        UsageError: the file cannot be read, or either is too long.
    """
    try:
        if isinstance(source, str) and is_text(source):
            data = source.encode()
        else:
            path = Path(source)
            if not path.is_file():  # opening a pipe would wait for its other end
                raise _refused(option, f"{path} is not a file")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _refused(option, f"it is longer than {MAX_BYTES >> 20} MiB")
        return data.decode()
    except (
        OSError,
        TypeError,
        ValueError,
    ) as error:  # ValueError: not UTF-8, or a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise _refused(option, f"{reason}") from error


def _refused(option: str, reason: str) -> UsageError:
    return UsageError(f"{option} cannot be read: {reason}.", settings=[option])
