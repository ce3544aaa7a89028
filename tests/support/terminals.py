"""The command line at a terminal of its own, where a test types and reads."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command_line import PROGRAM


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int) -> None:
        self.process = process
        self._controller = controller
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def insist(self, text: str, pattern: str) -> str:
        """Type ``text`` until ``pattern`` is shown, as a person would whose key was lost."""
        for _ in range(30):
            self.type(text)
            if self.shows(pattern, seconds=2):
                break
        return self.wait_for(pattern)

    def wait_for(self, pattern: str) -> str:
        """What is shown up to ``pattern``, which is taken away."""
        assert self.shows(pattern, seconds=60), f"{pattern!r} was not shown, but {self.seen!r}"
        match = re.search(pattern, self.seen, re.DOTALL)
        assert match
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def shows(self, pattern: str, seconds: float) -> bool:
        """Whether ``pattern`` is shown before so many seconds are over."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen, re.DOTALL):
            ready, _, _ = select.select([self._controller], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return False
            try:
                self.seen += os.read(self._controller, 2**16).decode(errors="replace")
            except OSError:  # the program has ended
                return False
        return True


@contextmanager
def terminal(*arguments: object, term: str = "dumb") -> Iterator[Terminal]:
    """A verb at a terminal; to a "dumb" one, libraries write no control sequences."""
    controller, device = pty.openpty()

    def take_terminal() -> None:  # so that Ctrl-C reaches it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(os.open(os.ttyname(device), os.O_RDWR))

    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=device,
        stdout=device,
        stderr=device,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509
        env={**os.environ, "TERM": term},
    )
    os.close(device)
    with process:
        try:
            yield Terminal(process, controller)
        finally:
            process.kill()
            os.close(controller)
