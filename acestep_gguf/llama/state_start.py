"""How the state of one sequence begins that llama.cpp hands out and takes back (llama-kv-cache.cpp)."""

from typing import Final

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

# What llama.cpp writes of one sequence before its keys and values: a magic number, the sequence, how many
# streams, how many cells; and for each cell its position, how many sequences it has, and which. Of several
# streams, each of the others has a zero for the number of its cells, before or after.
STATE_HEAD: Final = np.dtype("<u4, <i4, <u4, <u4")
STATE_CELL: Final = np.dtype("<i4, <u4, <i4")
CELL_COUNT: Final = np.dtype("<u4")
N_STREAMS_AT: Final = 8


def state_start_bytes(n_past: int) -> int:
    """How much of a state with ``n_past`` positions ``state_start`` is."""
    return STATE_HEAD.itemsize + n_past * STATE_CELL.itemsize


def state_start(magic: UInt8Array, n_past: int) -> UInt8Array:
    """How the state of sequence 0 with ``n_past`` positions begins; the magic number is left to llama.cpp."""
    head, cells = np.zeros(1, STATE_HEAD), np.zeros(n_past, STATE_CELL)
    head["f2"], head["f3"] = 1, n_past
    cells["f0"], cells["f1"] = np.arange(n_past), 1
    return np.concatenate([magic, head.view(np.uint8)[len(magic) :], cells.view(np.uint8)])
