"""GPTQ, 4 or 8 bits: what AutoGPTQ and GPTQModel store (``TorchQuantLinear.dequantize_weight``).

``qweight`` int32 [in * bits / 32, out] holds the numbers of 32 / bits rows in a word, ``qzeros`` int32
[n_groups, out * bits / 32] those of as many columns, ``scales`` float16 [n_groups, out], ``g_idx`` int32 [in]
the group of each row of the file; without it, groups follow one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.grouped_weight import (
    GroupedFormat,
    GroupedWeight,
    read_int32,
    unpack_words,
)
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import Stored, part
from acestep_gguf.convert.checkpoint.prequantized.settings import choice, group_size
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

# Checkpoint format -> what was subtracted from each zero point before they were packed.
SUBTRACTED: Final = {"gptq": 1, "gptq_v2": 0}
# Per-module overrides whose key begins like this leave a module out; others give it other bits or groups.
LEFT_OUT: Final = "-:"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqWeight(GroupedWeight):
    """A matrix; ``subtracted`` is what its packed zero points are too low."""

    bits: int
    subtracted: int
    group_size: int
    g_idx: SafetensorsTensor | None

    def _adjust_zeros(self, qzeros: NDArray[np.int32]) -> NDArray[np.int32]:
        # On the packed words, as GPTQModel's convert_gptq_v1_to_v2_format: a zero point of 0 was stored as a
        # borrow from its neighbour, which the carry gives back.
        ones = sum(self.subtracted << shift for shift in range(0, 32, self.bits))
        return (qzeros.view(np.uint32) + np.uint32(ones)).view(np.int32)

    def _group_of(self) -> NDArray[np.intp]:
        if self.g_idx is None:
            return np.arange(self.shape[1]) // self.group_size
        group_of = read_int32(self.g_idx).astype(np.intp)
        if not 0 <= group_of.min() <= group_of.max() < self.scales.shape[0]:
            raise CheckpointError(
                f"tensor {self.g_idx.name} names groups that {self.scales.name} does not have: "
                "get the file again."
            )
        return group_of

    def _unpack(self, qweight: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        words = qweight[:, start:stop].T  # [rows, in * bits / 32]
        return unpack_words(words, self.bits).reshape(stop - start, self.shape[1])

    def _unpack_zeros(self, qzeros: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
        per_word = 32 // self.bits
        first, last = start // per_word, -(-stop // per_word)
        numbers = unpack_words(qzeros[:, first:last], self.bits).reshape(len(qzeros), -1)
        return numbers[:, start - first * per_word : stop - first * per_word]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq(GroupedFormat):
    """A checkpoint in this format."""

    name = "GPTQ"

    subtracted: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Out of ``quantization_config``.

        Raises:
            CheckpointError: a setting is missing or damaged.
            UnsupportedModelError: another format, other bits, or different ones for single modules.
        """
        overrides = settings.get("dynamic") or {}
        if not isinstance(overrides, dict) or any(not key.startswith(LEFT_OUT) for key in overrides):
            raise UnsupportedModelError(
                "GPTQ with settings for single modules (dynamic) is not read: "
                "convert the checkpoint that it was quantized from."
            )
        choice(cls.name, settings, ("is_marlin_format",), (False, None), default=False)
        choice(cls.name, settings, ("pack_dtype",), ("int32",), default="int32")
        versions = tuple(SUBTRACTED)
        version = choice(cls.name, settings, ("checkpoint_format", "format"), versions, default="gptq")
        return cls(
            bits=choice(cls.name, settings, ("bits",), (4, 8)),
            group_size=group_size(cls.name, settings, ("group_size",), default=128),
            subtracted=SUBTRACTED[version],
        )

    def _weight(self, stored: Stored, prefix: str) -> GptqWeight:
        qweight = part(stored, f"{prefix}qweight", ("I32",))
        n_in, n_out = qweight.shape[0] * self.per_word, qweight.shape[1]
        size, qzeros, scales = self._scaling(stored, prefix, n_in, n_out)
        has_g_idx = f"{prefix}g_idx" in stored
        g_idx = part(stored, f"{prefix}g_idx", ("I32",), (n_in,)) if has_g_idx else None
        return GptqWeight(
            name=f"{prefix}weight",
            shape=(n_out, n_in),
            parts=(qweight, qzeros, scales, *([g_idx] if g_idx else [])),
            qweight=qweight,
            qzeros=qzeros,
            scales=scales,
            recent=self.recent,
            bits=self.bits,
            subtracted=self.subtracted,
            group_size=size,
            g_idx=g_idx,
        )
