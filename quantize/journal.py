"""The journal beside a partial file: which of its steps are whole, so that a later run can carry on.

A line holds the hash of the whole file up to the end of one step. A later run believes a line only if the
file has that hash, so it does not matter which of the two a failing machine brought to the disk first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

import msgspec

MAX_JOURNAL_BYTES: Final = 64 * 2**20
FORMAT: Final = 3


@dataclass(frozen=True, slots=True)
class Step:
    """After the step ``number``, counted from 0, the file's first ``n_bytes`` have ``sha256``.

    ``stamp`` is the state of what the step was made from.
    """

    number: int
    stamp: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Head:
    """First line; ``identity`` stands for everything that decides the file's bytes, but for its sources."""

    format: int
    identity: str


class Journal:
    """Lines of JSON: a Head, then Steps."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._head = Head(FORMAT, identity)
        # A line that was not written to its end has no newline.
        lines = self._read_bytes().split(b"\n")[:-1]
        self.steps = self._parse(lines)
        self._ends = [0, *accumulate(len(line) + 1 for line in lines)]

    def keep(self, n_steps: int) -> None:
        """Go on behind the first ``n_steps`` of ``steps``, those that turned out to be true."""
        self._file = self.path.open("ab", buffering=0)
        self._file.truncate(self._ends[1 + n_steps] if n_steps else 0)
        if not n_steps:
            self._file.write(msgspec.json.encode(self._head) + b"\n")

    def append(self, step: Step) -> None:
        """Write down a step whose bytes are in the file."""
        self._file.write(msgspec.json.encode(step) + b"\n")

    def close(self) -> None:
        self._file.close()

    def _read_bytes(self) -> bytes:
        if not self.path.exists() or self.path.stat().st_size > MAX_JOURNAL_BYTES:
            return b""
        return self.path.read_bytes()

    def _parse(self, lines: Sequence[bytes]) -> Sequence[Step]:
        """The steps, up to the first line that is not one; none if the file's identity is another one now."""
        steps: list[Step] = []
        try:
            if lines and msgspec.json.decode(lines[0], type=Head) == self._head:
                for line in lines[1:]:
                    step = msgspec.json.decode(line, type=Step)
                    if step.number != len(steps):  # a line between was lost
                        break
                    steps.append(step)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # an earlier run was killed while it wrote this line
        return steps
