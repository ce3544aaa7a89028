"""What was summed so far, beside the imatrix: a killed run goes on from it, another weighting needs no other.

A line of JSON says which entries follow, and then come their float64 values. The file is replaced as a whole,
so it always holds a number of whole samples.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from acestep_gguf.errors import ImatrixError
from acestep_gguf.quantize.imatrix import MAX_BYTES
from acestep_gguf.quantize.importance.sums import KINDS, Kind, RowSum, SquareSums
from acestep_gguf.storage.atomic_file import write_atomically

SUFFIX: Final = ".sums"
FORMAT: Final = "acestep-gguf imatrix sums 1"
# Twice the bytes of an imatrix, of each kind of token; and the line.
MAX_STATE_BYTES: Final = 2 * len(KINDS) * MAX_BYTES
FLOAT64: Final = np.dtype("<f8")


def state_path(output: Path) -> Path:
    """Where the state of the imatrix ``output`` lies."""
    return output.with_name(output.name + SUFFIX)


class _Entry(NamedTuple):
    kind: Kind
    name: str
    n_values: int
    n_rows: int


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """``identity`` stands for everything that decides the sums; ``sha256`` is of all else and the values."""

    format: Literal["acestep-gguf imatrix sums 1"]
    identity: str
    n_done: int
    entries: list[_Entry]
    sha256: str


@dataclass(slots=True)
class State:
    """Sums over the first ``n_done`` samples."""

    identity: str
    n_done: int = 0
    sums: SquareSums = field(default_factory=SquareSums)

    def write(self, path: Path) -> None:
        """Replace the file ``path``.

        Raises:
            ImatrixError: it cannot be written; what was there is as it was.
        """
        known = [(kind, name, one) for kind in KINDS for name, one in self.sums.by_kind[kind].items()]
        data = b"".join(one.squares.astype(FLOAT64).tobytes() for _, _, one in known)
        entries = [_Entry(kind, name, len(one.squares), one.n_rows) for kind, name, one in known]
        head = _Head(FORMAT, self.identity, self.n_done, entries, "")
        head.sha256 = _sha256(head, data)
        try:
            # A power failure may damage it, which is noticed; a kill cannot.
            write_atomically(path, [msgspec.json.encode(head), b"\n", data], durable=False)
        except OSError as error:
            raise ImatrixError(
                f"{path} cannot be written ({error.strerror}): make room; the same command carries on."
            ) from error

    @classmethod
    def read(cls, path: Path, identity: str) -> "State":
        """What an earlier run of the same ``identity`` left, or a new one.

        Raises:
            ImatrixError: another run left it, or it is damaged.
        """
        if not path.exists():
            return cls(identity)
        head, data = _read(path)
        if head.identity != identity:
            raise ImatrixError(
                f"{path} is of another decoder, other data or other settings: give the same again, another "
                "output, or restart=True to begin anew.",
                settings=["output", "restart"],
            )
        state = cls(identity, head.n_done)
        start = 0
        for kind, name, n_values, n_rows in head.entries:
            squares = np.frombuffer(data, FLOAT64, n_values, start).copy()
            state.sums.by_kind[kind][name] = RowSum(squares, n_rows)
            start += squares.nbytes
        return state


def _read(path: Path) -> tuple[_Head, bytes]:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise _damaged(path)
        line, _, data = path.read_bytes().partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
    except OSError as error:
        raise ImatrixError(
            f"{path} cannot be read ({error.strerror}): give another output.", settings=["output"]
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path) from error
    counts = [number for entry in head.entries for number in (entry.n_values, entry.n_rows)]
    n_values = sum(entry.n_values for entry in head.entries)
    if min([head.n_done, *counts]) < 0 or n_values * FLOAT64.itemsize != len(data):
        raise _damaged(path)
    if _sha256(head, data) != head.sha256:
        raise _damaged(path)
    return head, data


def _sha256(head: _Head, data: bytes) -> str:
    facts = msgspec.json.encode((head.format, head.identity, head.n_done, head.entries))
    return hashlib.sha256(facts + data).hexdigest()


def _damaged(path: Path) -> ImatrixError:
    return ImatrixError(
        f"{path} is not what an interrupted imatrix leaves, or damaged: begin anew with restart=True.",
        settings=["restart"],
    )
