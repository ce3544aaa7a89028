"""FP8 with one scale for each block, as DeepSeek-V3 and transformers' FineGrainedFP8 store it.

``weight`` float8 e4m3fn [out, in] and ``weight_scale_inv`` [out / block rows, in / block columns], which is,
in spite of its name, what the weights are multiplied by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight, Stored, part
from acestep_gguf.convert.checkpoint.prequantized.settings import block_size, choice
from acestep_gguf.convert.checkpoint.safetensors_file import DECODERS, SafetensorsTensor
from acestep_gguf.errors import UnsupportedModelError

SCALE_SUFFIX: Final = "_scale_inv"
OTHER_SCALE_SUFFIX: Final = "_scale"  # vLLM's and compressed-tensors'


def _e4m3fn_values() -> NDArray[np.float32]:
    """The float32 of each byte: 1 bit sign, 4 bits exponent with bias 7, 3 bits mantissa, no infinity.

    https://arxiv.org/abs/2209.05433, table 1.
    """
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent, mantissa = code >> 3 & 15, (code & 7) / 8
    values = sign * np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    return np.where(code & 0x7F == 0x7F, np.nan, values).astype(np.float32)


E4M3FN: Final = _e4m3fn_values()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight(PackedWeight):
    """A matrix in blocks of ``block`` rows and columns; those at its end may be smaller."""

    weight: SafetensorsTensor
    scale: SafetensorsTensor
    block: tuple[int, int]

    def _dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        n_in, (block_rows, block_columns) = self.shape[1], self.block
        numbers = E4M3FN[self.weight.read_bytes(start * n_in, stop * n_in)].reshape(-1, n_in)
        first, last = start // block_rows, -(-stop // block_rows)
        scales = self.scale.read_rows(first, last)[np.arange(start, stop) // block_rows - first]
        numbers *= np.repeat(scales, block_columns, axis=1)[:, :n_in]
        return numbers


@dataclass(frozen=True, slots=True)
class Fp8:
    """A checkpoint of 8-bit floating-point weights with a scale for each block."""

    block: tuple[int, int]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Out of ``quantization_config``.

        Raises:
            CheckpointError: a setting is damaged.
            UnsupportedModelError: scales of another kind.
        """
        choice("FP8", settings, ("fmt",), ("e4m3",), default="e4m3")
        choice("FP8", settings, ("scale_fmt",), ("float", None), default="float")
        choice("FP8", settings, ("activation_scheme",), ("dynamic",), default="dynamic")
        if settings.get("weight_block_size", ()) is None:
            raise UnsupportedModelError(
                "FP8 without weight_block_size is not read: "
                "convert the checkpoint that it was quantized from."
            )
        return cls(block_size(settings, "weight_block_size", default=(128, 128)))

    def label(self) -> str:
        return f"FP8, blocks of {self.block[0]} x {self.block[1]}"

    def weights(self, stored: Stored) -> Iterator[Fp8Weight]:
        """The weights that ``stored`` holds.

        Raises:
            CheckpointError: tensors are missing or do not fit together.
            UnsupportedModelError: scales of another kind.
        """
        for name, tensor in stored.items():
            if tensor.dtype == "F8_E4M3":
                yield self._weight(stored, name)

    def _weight(self, stored: Stored, name: str) -> Fp8Weight:
        if f"{name}{OTHER_SCALE_SUFFIX}" in stored:
            raise UnsupportedModelError(
                f"FP8 with {name}{OTHER_SCALE_SUFFIX}, one scale for a matrix or a row, is not read: "
                "convert the checkpoint that it was quantized from."
            )
        weight = part(stored, name, ("F8_E4M3",))
        grid = tuple(-(-dim // block) for dim, block in zip(weight.shape, self.block, strict=True))
        scale = part(stored, f"{name}{SCALE_SUFFIX}", DECODERS, grid)
        return Fp8Weight(
            name=name,
            shape=weight.shape,
            parts=(weight, scale),
            weight=weight,
            scale=scale,
            block=self.block,
        )
