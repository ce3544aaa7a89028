"""Queries and keys with their rows in the order in which llama.cpp rotates them, and back."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.weight import DerivedWeight


@dataclass(frozen=True, slots=True)
class _ReorderedHeads(DerivedWeight):
    """A query or key projection whose heads' rows are reordered, read row by row.

    transformers rotates row i of a head together with row i + head_size / 2, llama.cpp rotates rows 2i and
    2i + 1 (in its Llama and in Pixtral's tower), for which ``LlamaModel.permute`` of its conversion package
    interleaves each head's second half with its first.
    """

    head_size: int

    @abstractmethod
    def _sources(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Where ``rows`` of a head come from."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]. Thread-safe.

        Raises:
            CheckpointError: see Weight.
        """
        numbers = np.arange(start, stop)
        row = numbers % self.head_size
        sources = numbers - row + self._sources(row)
        first, last = sources.min(), sources.max()
        rows: NDArray[np.float32] = self.tensor.read_rows(int(first), int(last) + 1)[sources - first]
        return rows


@dataclass(frozen=True, slots=True)
class NeighbouringPairs(_ReorderedHeads):
    """transformers' rows in llama.cpp's order."""

    def _sources(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        return rows % 2 * (self.head_size // 2) + rows // 2


@dataclass(frozen=True, slots=True)
class PairsOfHalves(_ReorderedHeads):
    """llama.cpp's rows in transformers' order."""

    def _sources(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        half = self.head_size // 2
        return rows % half * 2 + rows // half
