"""A weight that several stored tensors stand for, dequantized while it is read."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.errors import CheckpointError

# A checkpoint's tensors as they are stored, by name.
Stored = Mapping[str, SafetensorsTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight(ABC):
    """A Weight (see weight.py) of ``shape`` [out, in] that is read out of ``parts``.

    Whoever makes one has checked that dtypes and shapes of the parts fit together.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[SafetensorsTensor, ...]

    @property
    def stamp(self) -> str:
        return " ".join(dict.fromkeys(part.stamp for part in self.parts))

    @property
    def held_bytes(self) -> int:
        """Memory that reading some rows holds on to, for the next rows."""
        return 0

    def check(self) -> None:  # noqa: B027 - nothing is left to check, in none of the formats
        """Nothing is left to check."""

    def read(self) -> NDArray[np.float32]:
        return self.read_rows(0, self.shape[0])

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, in]. Thread-safe.

        Raises:
            CheckpointError: a weight comes out as NaN or infinite, or the file ended early or cannot be read.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            rows = self._dequantize(start, stop)
        if not np.isfinite(rows).all():
            raise CheckpointError(f"tensor {self.name} has NaN or infinite weights: get the file again.")
        return rows

    @abstractmethod
    def _dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [n, in]; the caller checks that they are finite."""


def part(
    stored: Stored, name: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None
) -> SafetensorsTensor:
    """The stored tensor ``name``; ``shape`` None stands for any matrix.

    Raises:
        CheckpointError: missing, or of another dtype or shape.
    """
    tensor = stored.get(name)
    if tensor is None:
        raise CheckpointError(f"tensor {name} is missing: get the whole checkpoint.")
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            f"tensor {name} is {tensor.dtype}, not {' or '.join(dtypes)}: "
            "get weights and config.json of one model."
        )
    fits = tensor.shape == shape if shape is not None else len(tensor.shape) == 2 and 0 not in tensor.shape
    if not fits:
        wanted = "a matrix" if shape is None else list(shape)
        raise CheckpointError(
            f"tensor {name} has shape {list(tensor.shape)}, not {wanted}: "
            "get weights and config.json of one model."
        )
    return tensor


def unpack_nibbles(packed: NDArray[np.uint8], *, high_first: bool) -> NDArray[np.uint8]:
    """The two numbers of 4 bits in each byte: uint8 [..., n] -> [..., 2 n]."""
    numbers = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.right_shift(packed, 4, out=numbers[..., 0 if high_first else 1 :: 2])
    np.bitwise_and(packed, 15, out=numbers[..., 1 if high_first else 0 :: 2])
    return numbers
