"""Queries and keys with their rows in the order in which llama.cpp's Llama rotates them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.weight import DerivedWeight


@dataclass(frozen=True, slots=True)
class NeighbouringPairs(DerivedWeight):
    """A query or key projection whose heads' rows are reordered, read row by row.

    transformers rotates row i of a head together with row i + head_size / 2, llama.cpp's Llama rotates rows
    2i and 2i + 1: so each head's second half is interleaved with its first, as ``LlamaModel.permute`` does it
    in llama.cpp's conversion package.
    """

    head_size: int

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]. Thread-safe.

        Raises:
            CheckpointError: see Weight.
        """
        numbers = np.arange(start, stop)
        row = numbers % self.head_size
        sources = numbers - row + row % 2 * (self.head_size // 2) + row // 2
        first, last = sources.min(), sources.max()
        rows: NDArray[np.float32] = self.tensor.read_rows(int(first), int(last) + 1)[sources - first]
        return rows
