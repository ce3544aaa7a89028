"""What a conversion reads: weights row by row, however they are stored."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Weight(Protocol):
    """A tensor of a checkpoint, or what several of its tensors stand for."""

    @property
    def name(self) -> str:
        """Name in the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

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
