"""bitsandbytes, 4 bits (nf4 and fp4) and 8 bits (LLM.int8), as its serializers store them.

4 bits (``QuantState`` in bitsandbytes/functional.py): ``weight`` holds two codes in a byte, the first one in
the high bits, of the flattened matrix; ``weight.quant_map`` float32 [16] is what a code means, and
``weight.absmax`` float32 the scale of each block of 64 numbers. With double quantization ``absmax`` is uint8:
a code in ``nested_quant_map`` float32 [256], times ``nested_absmax`` of each block of 256 scales, plus
``nested_offset``. ``weight.quant_state.bitsandbytes__nf4`` holds sizes and offset as JSON.

8 bits (``int8_vectorwise_dequant``): ``weight`` int8 [out, in], ``SCB`` float32 [out] the largest of a row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.json_file import parse_json
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import (
    PackedWeight,
    Stored,
    part,
    unpack_nibbles,
)
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

STATE_INFIX: Final = ".quant_state.bitsandbytes__"
QUANT_TYPES: Final = ("nf4", "fp4")
MAX_STATE_BYTES: Final = 4096
# 1 / 127, as int8_vectorwise_dequant has it.
ONE_127TH: Final = np.float32(7.874015718698502e-3)
ROW_FORMAT: Final = 0  # of weight_format; others were made for single GPUs

BlockSize = Annotated[int, msgspec.Meta(ge=32, le=4096)]
Dim = Annotated[int, msgspec.Meta(ge=1, lt=2**32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantState:
    """The JSON beside a weight of 4 bits."""

    quant_type: str
    blocksize: BlockSize
    shape: tuple[Dim, Dim]
    nested_blocksize: BlockSize | None = None
    nested_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class NestedScales:
    """What stands behind scales that are codes themselves."""

    quant_map: SafetensorsTensor
    absmax: SafetensorsTensor
    blocksize: int
    offset: np.float32

    @property
    def parts(self) -> tuple[SafetensorsTensor, ...]:
        return self.quant_map, self.absmax

    def decode(self, codes: NDArray[np.uint8], first: int) -> NDArray[np.float32]:
        """The scales of the blocks from ``first`` on, whose 8-bit codes are ``codes``."""
        block_of = np.arange(first, first + len(codes)) // self.blocksize
        scales = self.quant_map.read()[codes]
        scales *= self.absmax.read()[block_of]
        scales += self.offset
        return scales


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBitWeight(PackedWeight):
    """A matrix in nf4 or fp4; its blocks run on from row to row."""

    weight: SafetensorsTensor
    quant_map: SafetensorsTensor
    absmax: SafetensorsTensor
    blocksize: int
    nested: NestedScales | None

    def _dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        n_in = self.shape[1]
        begin, end = start * n_in, stop * n_in
        packed = self.weight.read_bytes(begin // 2, -(-end // 2))
        codes = unpack_nibbles(packed, high_first=True)[begin % 2 : begin % 2 + end - begin]
        first, last = begin // self.blocksize, -(-end // self.blocksize)
        numbers: NDArray[np.float32] = self.quant_map.read()[codes]
        offset = begin - first * self.blocksize
        numbers *= np.repeat(self._scales(first, last), self.blocksize)[offset : offset + end - begin]
        return numbers.reshape(-1, n_in)

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        if self.nested is None:
            return self.absmax.read_bytes(4 * first, 4 * last).view("<f4")
        return self.nested.decode(self.absmax.read_bytes(first, last), first)


@dataclass(frozen=True, slots=True, kw_only=True)
class EightBitWeight(PackedWeight):
    """A matrix of int8 with a scale for each row."""

    weight: SafetensorsTensor
    scb: SafetensorsTensor

    def _dequantize(self, start: int, stop: int) -> NDArray[np.float32]:
        n_in = self.shape[1]
        numbers = self.weight.read_bytes(start * n_in, stop * n_in).view(np.int8).astype(np.float32)
        rows = numbers.reshape(-1, n_in)
        rows *= self.scb.read()[start:stop, np.newaxis]
        rows *= ONE_127TH
        return rows


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    """A checkpoint in this format: its tensors say all but what to call it."""

    name: str

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Read config.json's ``quantization_config``."""
        quant_type = settings.get("bnb_4bit_quant_type")
        if settings.get("load_in_8bit") is True:
            return cls("bitsandbytes 8-bit")
        return cls(f"bitsandbytes 4-bit {quant_type}" if quant_type in QUANT_TYPES else "bitsandbytes")

    def label(self) -> str:
        return self.name

    def weights(self, stored: Stored) -> Iterator[PackedWeight]:
        """The weights that ``stored`` holds.

        Raises:
            CheckpointError: tensors are missing, damaged or do not fit together.
            UnsupportedModelError: in a layout that was made for single GPUs.
        """
        for name in stored:
            weight, infix, quant_type = name.partition(STATE_INFIX)
            if infix:
                yield _four_bit(stored, weight, quant_type)
            elif name.endswith(".SCB"):
                yield _eight_bit(stored, name.removesuffix("SCB"))


def _four_bit(stored: Stored, name: str, quant_type: str) -> FourBitWeight:
    state_tensor = stored[f"{name}{STATE_INFIX}{quant_type}"]
    state = _read_state(state_tensor)
    if state.quant_type != quant_type or quant_type not in QUANT_TYPES:
        raise UnsupportedModelError(
            f"tensor {name} is {state.quant_type}, not {' or '.join(QUANT_TYPES)}: "
            "convert the checkpoint that it was quantized from."
        )
    n_numbers = prod(state.shape)
    weight = stored.get(name)
    # quant_storage may be any dtype: only the bytes count.
    if weight is None or weight.n_bytes < -(-n_numbers // 2):
        raise CheckpointError(
            f"tensor {name} has fewer bytes than {list(state.shape)} takes in 4 bits: get the file again."
        )
    n_blocks = -(-n_numbers // state.blocksize)
    is_nested = state.nested_blocksize is not None
    absmax = part(stored, f"{name}.absmax", ("U8",) if is_nested else ("F32",), (n_blocks,))
    quant_map = part(stored, f"{name}.quant_map", ("F32",), (16,))
    nested = _nested_scales(stored, name, state, n_blocks)
    return FourBitWeight(
        name=name,
        shape=state.shape,
        parts=(weight, absmax, quant_map, state_tensor, *(nested.parts if nested else ())),
        weight=weight,
        quant_map=quant_map,
        absmax=absmax,
        blocksize=state.blocksize,
        nested=nested,
    )


def _read_state(tensor: SafetensorsTensor) -> QuantState:
    if tensor.n_bytes > MAX_STATE_BYTES:
        raise CheckpointError(f"tensor {tensor.name} has {tensor.n_bytes} bytes: get the file again.")
    try:
        text = tensor.read_bytes(0, tensor.n_bytes).tobytes().decode()
        return msgspec.convert(parse_json(text, tensor.file.path), type=QuantState)
    except (UnicodeDecodeError, msgspec.ValidationError) as error:
        raise CheckpointError(f"tensor {tensor.name} is damaged ({error}): get the file again.") from error


def _nested_scales(stored: Stored, name: str, state: QuantState, n_scales: int) -> NestedScales | None:
    if state.nested_blocksize is None:
        return None
    return NestedScales(
        quant_map=part(stored, f"{name}.nested_quant_map", ("F32",), (256,)),
        absmax=part(stored, f"{name}.nested_absmax", ("F32",), (-(-n_scales // state.nested_blocksize),)),
        blocksize=state.nested_blocksize,
        offset=np.float32(state.nested_offset),
    )


def _eight_bit(stored: Stored, prefix: str) -> EightBitWeight:
    weight = part(stored, f"{prefix}weight", ("I8",))
    scb = part(stored, f"{prefix}SCB", ("F32",), weight.shape[:1])
    parts = [weight, scb]
    if f"{prefix}weight_format" in stored:
        layout = part(stored, f"{prefix}weight_format", ("U8",), ())
        if layout.read_bytes(0, 1)[0] != ROW_FORMAT:
            raise UnsupportedModelError(
                f"tensor {weight.name} is not stored row by row, says {layout.name}: "
                "save it with bitsandbytes 0.45 or newer."
            )
        parts.append(layout)
    return EightBitWeight(name=weight.name, shape=weight.shape, parts=tuple(parts), weight=weight, scb=scb)
