"""What a conversion reads: weights row by row, however they are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor

N_COMPARED_WEIGHTS: Final = 2**20


class Weight(Protocol):
    """A tensor of a checkpoint, or what several of its tensors stand for."""

    @property
    def name(self) -> str:
        """Name of the tensor in the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions, rows first."""

    @property
    def stamp(self) -> str:
        """State of the files that hold it: another one when one of them was changed or replaced."""

    def check(self) -> None:
        """Find what can be known to be wrong without reading the weights.

        Raises:
            CheckpointError: they cannot be read.
        """

    def read(self) -> NDArray[np.float32]:
        """The whole tensor as float32. Raises the same as ``read_rows``."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]; a vector is one row. Thread-safe.

        Raises:
            CheckpointError: a weight is NaN or infinite, or the file ended early or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class DerivedWeight:
    """A weight that is computed from ``tensor`` row by row; by itself, the same."""

    tensor: Weight

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def stamp(self) -> str:
        return self.tensor.stamp

    def check(self) -> None:
        self.tensor.check()

    def read(self) -> NDArray[np.float32]:
        return self.read_rows(0, prod(self.shape[:-1])).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.tensor.read_rows(start, stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWeights:
    """A checkpoint's weights by name; those of a quantized checkpoint read as what they stand for.

    ``stored`` are the tensors as the files have them. ``quantization`` tells how they are quantized already,
    None if they are not. ``zero_biases`` are those that GPTQ stores for layers that have none. ``held_bytes``
    is the memory that reading packed weights holds on to, at most.
    """

    tensors: Mapping[str, Weight]
    stored: Mapping[str, SafetensorsTensor]
    quantization: str | None = None
    zero_biases: frozenset[str] = frozenset()
    held_bytes: int = 0

    def check_unchanged(self) -> None:
        """Check that no file has been written to since it was opened.

        Raises:
            SourceLostError: one has.
        """
        for file in {tensor.file for tensor in self.stored.values()}:
            file.check_unchanged()


def are_equal(left: Weight, right: Weight) -> bool:
    """Whether two matrices hold the same weights."""
    if left.shape != right.shape or len(left.shape) != 2 or 0 in left.shape:
        return False
    n_rows, step = left.shape[0], max(1, N_COMPARED_WEIGHTS // left.shape[1])
    chunks = ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))
    return all(np.array_equal(left.read_rows(*chunk), right.read_rows(*chunk)) for chunk in chunks)
