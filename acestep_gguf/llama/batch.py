"""What one call of llama.cpp computes: rows, where they stand, of which sequence, and which give logits."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from acestep_gguf.llama.library import lib

IntArray = npt.NDArray[np.integer[Any]]


class Batch:
    """The arrays that llama_batch points to, made once for up to ``capacity`` positions."""

    def __init__(self, capacity: int) -> None:
        self._positions = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._n_sequences = np.ones(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        # Each row has a list of sequences: the address of its one number.
        offsets = self._sequences.itemsize * np.arange(capacity, dtype=np.uintp)
        self._lists = offsets + np.uintp(self._sequences.ctypes.data)
        self._native = lib.llama_batch(
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._lists.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self._input: npt.NDArray[Any] = self._positions  # whatever the batch points to, kept alive

    def one_sequence(self, rows: npt.NDArray[Any], position: int, n_outputs: int, sequence: int) -> Any:
        """Tokens, int32 [n], or embeds, float32 [n, n_embd]; the last ``n_outputs`` of them give logits."""
        count = len(rows)
        self._outputs[: count - n_outputs] = 0
        self._outputs[count - n_outputs : count] = 1
        return self._filled(rows, np.arange(position, position + count), np.full(count, sequence))

    def each(self, tokens: npt.NDArray[np.int32], positions: Sequence[int], sequences: Sequence[int]) -> Any:
        """A token of each of several sequences, all of which give logits."""
        self._outputs[: len(tokens)] = 1
        return self._filled(tokens, np.asarray(positions), np.asarray(sequences))

    def _filled(self, rows: npt.NDArray[Any], positions: IntArray, sequences: IntArray) -> Any:
        count, batch = len(rows), self._native
        self._input = rows
        self._positions[:count], self._sequences[:count] = positions, sequences
        batch.n_tokens, batch.token, batch.embd = count, None, None
        if rows.dtype == np.float32:
            batch.embd = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        else:
            batch.token = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        return batch
