"""What was typed in earlier chats, in a file that its owner alone may read."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import platformdirs

from acestep_gguf.storage.atomic_file import PRIVATE, write_atomically

MOST_LINES: Final = 1_000
MOST_BYTES: Final = 2**20
MOST_BYTES_OF_LINE: Final = 2**14  # what is longer was not typed


def history_file() -> Path:
    """Where it is: on Linux in XDG_STATE_HOME or ``~/.local/state``."""
    return platformdirs.user_state_path("acestep-gguf") / "chat_history"


class History:
    """Lines in a file, the oldest first. A chat goes on where it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[str]:
        """The last lines; older ones are taken out of the file when it has grown to twice as many."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_BYTES))
                lines = file.read(MOST_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return []
        last = lines[-MOST_LINES:]
        if len(lines) >= 2 * MOST_LINES or self._path.stat().st_size > MOST_BYTES:
            with suppress(OSError):
                write_atomically(self._path, [f"{line}\n".encode() for line in last], mode=PRIVATE)
        return last

    def add(self, line: str) -> None:
        """Write a line at the end."""
        data = line.replace("\n", " ").encode(errors="replace") + b"\n"
        if not line.strip() or len(data) > MOST_BYTES_OF_LINE:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
            try:
                os.write(file, data)  # at once, so that lines of two chats do not mix
            finally:
                os.close(file)
