"""GGUF files laid out before a byte is written: the header, and where each tensor will lie.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. gguf-py's
writer is not used: it tells a file's size only by writing it, and takes seconds to pack a vocabulary.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from gguf import GGUF_MAGIC, GGUF_VERSION, GGMLQuantizationType, GGUFValueType

from acestep_gguf.quantize.ggml import row_size
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice

ALIGNMENT: Final = 32

# A key's value, encoded as GGUF stores it: value type, then payload.
Metadata = Mapping[str, bytes]


def u32(value: int) -> bytes:
    """An unsigned 32-bit value."""
    return struct.pack("<II", GGUFValueType.UINT32, value)


def f32(value: float) -> bytes:
    """A float32 value."""
    return struct.pack("<If", GGUFValueType.FLOAT32, value)


def boolean(value: bool) -> bytes:
    """A boolean value."""
    return struct.pack("<I?", GGUFValueType.BOOL, value)


def string(value: str) -> bytes:
    """A UTF-8 string value."""
    return struct.pack("<I", GGUFValueType.STRING) + _string(value)


def strings(values: Sequence[str]) -> bytes:
    """An array of strings."""
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(values))
    return head + b"".join(map(_string, values))


def f32s(values: Sequence[float]) -> bytes:
    """An array of float32 values."""
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.FLOAT32, len(values))
    return head + struct.pack(f"<{len(values)}f", *values)


def i32s(values: Sequence[int]) -> bytes:
    """An array of signed 32-bit values."""
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.INT32, len(values))
    return head + struct.pack(f"<{len(values)}i", *values)


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor in a file: its type, and its data at ``offset`` from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    offset: int
    n_bytes: int

    @property
    def padded_end(self) -> int:
        """Where the next tensor begins, or the file ends."""
        return _padded(self.offset + self.n_bytes)


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """A GGUF file: ``header``, padded to where the first tensor begins, then the tensors, each padded."""

    header: bytes
    tensors: tuple[PlacedTensor, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return self.tensors[-1].padded_end

    @property
    def bits_per_weight(self) -> float:
        """Mean over all tensors."""
        n_weights = sum(prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / n_weights


def lay_out(
    metadata: Metadata, tensors: Sequence[TensorShape], choices: Mapping[str, TypeChoice]
) -> GgufLayout:
    """Lay out a file of ``tensors``, in their order, each of its chosen type."""
    sizes = [_n_bytes(tensor, choices[tensor.name].qtype) for tensor in tensors]
    offsets = [0]
    for size in sizes:
        offsets.append(_padded(offsets[-1] + size))

    header = bytearray(struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + value
    for tensor, offset in zip(tensors, offsets, strict=False):
        n_dims = len(tensor.shape)
        header += _string(tensor.name) + struct.pack("<I", n_dims)
        header += struct.pack(f"<{n_dims}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", choices[tensor.name].qtype, offset)
    header += bytes(_padded(len(header)) - len(header))

    placed = tuple(
        PlacedTensor(tensor.name, tensor.shape, choices[tensor.name].qtype, len(header) + offset, size)
        for tensor, offset, size in zip(tensors, offsets, sizes, strict=False)
    )
    return GgufLayout(bytes(header), placed)


def _n_bytes(tensor: TensorShape, qtype: GGMLQuantizationType) -> int:
    return prod(tensor.shape[:-1]) * row_size(qtype, tensor.shape[-1])


def _padded(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _string(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded
