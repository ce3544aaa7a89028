"""AWQ, 4 bits, in AutoAWQ's layout "gemm": its ``dequantize_gemm`` (awq/utils/packing_utils.py).

``qweight`` int32 [in, out / 8] and ``qzeros`` int32 [in / group_size, out / 8] hold eight columns in a word,
``scales`` float16 [in / group_size, out].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.grouped_weight import (
    GroupedFormat,
    GroupedWeight,
    unpack_words,
)
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import Stored, part
from acestep_gguf.convert.checkpoint.prequantized.settings import choice, group_size

PER_WORD: Final = 8
# Column j of eight is the number at bits 4 * NUMBER_OF_COLUMN[j] of the word.
NUMBER_OF_COLUMN: Final = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqWeight(GroupedWeight):
    """A matrix in the layout "gemm"."""

    group_size: int

    def _group_of(self) -> NDArray[np.intp]:
        return np.arange(self.shape[1]) // self.group_size

    def _unpack(self, qweight: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        return _columns(qweight, start, stop).T

    def _unpack_zeros(self, qzeros: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        return _columns(qzeros, start, stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq(GroupedFormat):
    """A checkpoint in this format."""

    name = "AWQ"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Out of ``quantization_config``, in AutoAWQ's or transformers' words.

        Raises:
            CheckpointError: a setting is missing or damaged.
            UnsupportedModelError: another layout, or other bits.
        """
        choice(cls.name, settings, ("version", "format"), ("gemm", "GEMM"), default="gemm")
        choice(cls.name, settings, ("zero_point",), (True,), default=True)
        choice(cls.name, settings, ("backend",), ("autoawq", "auto", None), default=None)
        return cls(
            bits=choice(cls.name, settings, ("bits", "w_bit"), (4,)),
            group_size=group_size(cls.name, settings, ("group_size", "q_group_size"), default=128),
        )

    def _weight(self, stored: Stored, prefix: str) -> AwqWeight:
        qweight = part(stored, f"{prefix}qweight", ("I32",))
        n_in, n_out = qweight.shape[0], qweight.shape[1] * self.per_word
        size, qzeros, scales = self._scaling(stored, prefix, n_in, n_out)
        return AwqWeight(
            name=f"{prefix}weight",
            shape=(n_out, n_in),
            parts=(qweight, qzeros, scales),
            qweight=qweight,
            qzeros=qzeros,
            scales=scales,
            recent=self.recent,
            group_size=size,
        )


def _columns(packed: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
    """Columns ``start`` to ``stop`` of int32 [rows, columns / 8], uint8 [rows, stop - start]."""
    first, last = start // PER_WORD, -(-stop // PER_WORD)
    numbers = unpack_words(packed[:, first:last], bits=4)[..., NUMBER_OF_COLUMN]
    return numbers.reshape(len(packed), -1)[:, start - first * PER_WORD : stop - first * PER_WORD]
