"""Integers with a scale and a zero point for each row and group of columns: what AWQ and GPTQ store.

Both store matrices transposed, [in, out], so that the rows of a chunk are columns of the file. The packed
matrix is therefore read as a whole, and held while chunks of it are asked for.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.packed_weight import (
    PackedWeight,
    Stored,
    part,
    unpack_nibbles,
)
from acestep_gguf.convert.checkpoint.safetensors_file import DECODERS, SafetensorsTensor

# Threads may be at the end of one weight and the beginning of the next ones at the same time.
MAX_HELD_BYTES: Final = 2**28


@dataclass(frozen=True, slots=True)
class Groups:
    """What is held of a weight: int32 ``qweight`` and ``qzeros`` as packed, and by group of columns:

    ``scales`` float32 [n_groups, out]; ``group_of`` int [in], the group of each column.
    """

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float32]
    group_of: NDArray[np.intp]

    @property
    def n_bytes(self) -> int:
        return self.qweight.nbytes + self.qzeros.nbytes + self.scales.nbytes + self.group_of.nbytes


class RecentGroups:
    """Those read last, shared by threads; the oldest are let go when there are more than MAX_HELD_BYTES."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: OrderedDict[str, Groups] = OrderedDict()

    def get(self, name: str, load: Callable[[], Groups]) -> Groups:
        """The groups of the weight ``name``, loaded if they are not held any more."""
        with self._lock:
            if name not in self._held:
                self._held[name] = load()
            self._held.move_to_end(name)
            while len(self._held) > 1 and self._n_bytes > MAX_HELD_BYTES:
                self._held.popitem(last=False)
            return self._held[name]

    @property
    def _n_bytes(self) -> int:
        return sum(groups.n_bytes for groups in self._held.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWeight(PackedWeight):
    """``(number - zero point) * scale``, which is exact in float32: 8 bits times the 11 of a float16."""

    qweight: SafetensorsTensor
    qzeros: SafetensorsTensor
    scales: SafetensorsTensor
    recent: RecentGroups

    @property
    def held_bytes(self) -> int:
        """Memory that reading some rows holds on to, for the next rows."""
        return sum(part.n_bytes for part in self.parts)

    def _dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        groups = self.recent.get(self.name, self._load)
        zeros = self._unpack_zeros(groups.qzeros, start, stop).T[:, groups.group_of]
        weights = self._unpack(groups.qweight, start, stop).astype(np.float32, order="C")
        weights -= zeros
        weights *= groups.scales[:, start:stop].T[:, groups.group_of]
        return weights

    def _load(self) -> Groups:
        return Groups(
            qweight=read_int32(self.qweight),
            qzeros=self._adjust_zeros(read_int32(self.qzeros)),
            scales=self.scales.read(),
            group_of=self._group_of(),
        )

    def _adjust_zeros(self, qzeros: NDArray[np.int32]) -> NDArray[np.int32]:
        """The packed zero points as they are to be taken."""
        return qzeros

    @abstractmethod
    def _group_of(self) -> NDArray[np.intp]:
        """The group of each column, int [in]."""

    @abstractmethod
    def _unpack(self, qweight: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` of the numbers, uint8 [stop - start, in]."""

    @abstractmethod
    def _unpack_zeros(self, qzeros: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        """Zero points of the rows ``start`` to ``stop``, uint8 [n_groups, stop - start]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedFormat(ABC):
    """A checkpoint of such weights; ``group_size`` None stands for one group of all columns."""

    name: ClassVar[str]

    bits: int
    group_size: int | None
    recent: RecentGroups = field(default_factory=RecentGroups)

    @property
    def per_word(self) -> int:
        """Numbers in 32 bits."""
        return 32 // self.bits

    def label(self) -> str:
        """What it is, in a few words."""
        return f"{self.name} {self.bits}-bit, groups of {self.group_size or 'a row'}"

    def weights(self, stored: Stored) -> Iterator[GroupedWeight]:
        """The weights that ``stored`` holds.

        Raises:
            CheckpointError: tensors are missing or do not fit together.
        """
        for name in stored:
            if name.endswith(".qweight"):
                yield self._weight(stored, name.removesuffix("qweight"))

    @abstractmethod
    def _weight(self, stored: Stored, prefix: str) -> GroupedWeight:
        """The weight whose tensors' names begin with ``prefix``."""

    def _scaling(
        self, stored: Stored, prefix: str, n_in: int, n_out: int
    ) -> tuple[int, SafetensorsTensor, SafetensorsTensor]:
        """The size of a group, and the zero points and scales of a matrix [out, in]."""
        size = self.group_size or n_in
        n_groups = -(-n_in // size)
        qzeros = part(stored, f"{prefix}qzeros", ("I32",), (n_groups, -(-n_out // self.per_word)))
        return size, qzeros, part(stored, f"{prefix}scales", DECODERS, (n_groups, n_out))


def held_bytes(weights: Iterable[PackedWeight]) -> int:
    """Memory that reading all ``weights`` in turns holds on to, at most."""
    each = [weight.held_bytes for weight in weights]
    return min(sum(each), max(MAX_HELD_BYTES, *each, 0))


def read_int32(tensor: SafetensorsTensor) -> NDArray[np.int32]:
    """A whole I32 tensor."""
    return tensor.read_bytes(0, tensor.n_bytes).view("<i4").reshape(tensor.shape)


def unpack_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Numbers of 4 or 8 bits in words, the lowest bits first: int32 [...] -> uint8 [..., 32 / bits]."""
    packed = np.ascontiguousarray(words, "<i4")[..., np.newaxis].view(np.uint8)
    return packed if bits == 8 else unpack_nibbles(packed, high_first=False)
