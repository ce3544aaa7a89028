"""Reads the header of a GGUF file: metadata and tensor infos, without the weights.

gguf-py's ``GGUFReader`` is not used: it takes 7.3 seconds for a file with Qwen2's vocabulary, this module
less than 0.1. Nothing that a header claims is believed: every count and length is checked against the bytes
that are left before anything is built from it. Versions 2 and 3, little endian; the layout is documented at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

from acestep_gguf.errors import BundleError, UnsupportedModelError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

# Far above any real model; they bound the time that a hostile header can cost.
MAX_HEADER_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 2**16
MAX_NAME_BYTES: Final = 2**16
MAX_DIMS: Final = 4
MAX_DEPTH: Final = 8


class TensorType(NamedTuple):
    """A ggml tensor type: rows are stored in blocks of ``block_size`` elements, ``type_size`` bytes each."""

    name: str
    block_size: int
    type_size: int


# enum ggml_type and type_traits of ggml.h.
TENSOR_TYPES: Final[dict[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}

# Types that ggml had, has for itself only, or got since: a sound file may hold them.
REFUSED_TYPES: Final[dict[int, str]] = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip

# enum gguf_type of gguf.h: format characters of struct and memoryview.
_SCALARS: Final[dict[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9

_U32 = Struct("<I")
_U64 = Struct("<Q")


# A file, or the beginning of one that will be written.
Buffer = mmap.mmap | bytes


class StringArray:
    """An array of strings that stays in the file until ``read`` is called; all its lengths were checked."""

    def __init__(self, buffer: Buffer, offset: int, count: int) -> None:
        self._buffer = buffer
        self._offset = offset
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self) -> list[bytes]:
        """The strings as they stand in the file, UTF-8 by convention but not checked."""
        strings = []
        position, unpack, buffer = self._offset, _U64.unpack_from, self._buffer
        for _ in range(self._count):
            start = position + 8
            position = start + unpack(buffer, position)[0]
            strings.append(buffer[start:position])
        return strings


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that nobody reads: text that is not UTF-8, or, ``is_nested``, an array of arrays."""

    is_nested: bool


# Arrays of numbers are typed views into the file: len(), indexing and numpy.asarray() work on them.
NumberArray = memoryview
Value = bool | int | float | str | StringArray | NumberArray | Skipped


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor; ``dims`` in ggml's order (row length first), ``offset`` from the start of the file."""

    name: str
    type: TensorType
    dims: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return prod(self.dims)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All of a GGUF file but its weights; ``encoded`` has each value of ``metadata`` as the file holds it."""

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    encoded: Mapping[str, memoryview]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int

    @property
    def n_params(self) -> int:
        """Number of weights of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean number of bits that a weight takes."""
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / max(1, self.n_params)


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read and check the header of ``path``; a file whose weights are cut short is refused too.

    Raises:
        BundleError: missing, not a GGUF file, of an unknown version, damaged or half-written.
        UnsupportedModelError: it holds weights of a type that is not supported.
    """
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:  # it cannot be mapped
        raise BundleError(f"{path} is empty: convert the checkpoint again.") from error
    return parse_gguf_header(buffer, path, len(buffer))


def parse_gguf_header(buffer: Buffer, path: Path, file_size: int) -> GGUFHeader:
    """The header in ``buffer``, of a file of ``file_size`` bytes; errors name ``path``, and are the same."""
    try:
        return _Reader(path, buffer, file_size).header()
    except (StructError, OverflowError):
        raise BundleError(
            f"{path} ends inside its header: it is half-written, convert or copy it again."
        ) from None
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is damaged: its header holds text that is not UTF-8 ({error}).") from error


class _Reader:
    """A cursor over the file; unpacking past its end raises struct.error, see parse_gguf_header."""

    def __init__(self, path: Path, buffer: Buffer, file_size: int) -> None:
        self.path = path
        self.buffer = buffer
        self.file_size = file_size
        self.position = 0
        self.end = min(len(buffer), MAX_HEADER_BYTES)
        self.n_nested = 0

    def header(self) -> GGUFHeader:
        self.check(self.take(4) == MAGIC, "it is not a GGUF file")
        version = self.u32()
        self.check(
            version in VERSIONS, f"GGUF version {version} is not supported (only little-endian 2 and 3 are)"
        )
        n_tensors = self.count("tensors", least_bytes=24)
        n_metadata = self.count("metadata entries", least_bytes=13)
        metadata, encoded = self.metadata(n_metadata)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self.damaged("general.alignment is not a power of two")
        infos = self.tensor_infos(n_tensors)
        data_offset = self.position + -self.position % alignment
        tensors = self.placed(infos, data_offset, alignment)
        return GGUFHeader(
            self.path, version, alignment, metadata, encoded, tensors, data_offset, self.file_size
        )

    def metadata(self, count: int) -> tuple[dict[str, Value], dict[str, memoryview]]:
        metadata: dict[str, Value] = {}
        encoded: dict[str, memoryview] = {}
        for _ in range(count):
            key = self.name()
            self.check(key not in metadata, f"metadata key {key!r} appears twice")
            start = self.position
            metadata[key] = self.value(key, self.u32())
            encoded[key] = memoryview(self.buffer)[start : self.position]
        return metadata, encoded

    def value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            text = self.take(self.length(self.u64()))
            try:
                return text.decode()
            except UnicodeDecodeError:
                return Skipped(is_nested=False)
        if kind == _ARRAY:
            return self.array(key, self.u32(), self.u64())
        code = _SCALARS.get(kind)
        if code is None:
            raise self.damaged(f"metadata key {key!r} has the unknown type {kind}")
        scalar: bool | int | float = self.unpack(Struct("<" + code))
        return scalar

    def array(self, key: str, kind: int, count: int, depth: int = 1) -> Value:
        if kind == _STRING:
            return self.string_array(self.length(count, item_bytes=8))
        if kind == _ARRAY:
            self.n_nested += count
            sound = depth < MAX_DEPTH and self.n_nested <= MAX_ENTRIES
            self.check(sound, f"metadata key {key!r} has too many arrays within arrays")
            for _ in range(self.length(count, item_bytes=12)):
                self.array(key, self.u32(), self.u64(), depth + 1)
            return Skipped(is_nested=True)
        code: Any = _SCALARS.get(kind)
        if code is None:
            raise self.damaged(f"metadata key {key!r} is an array of the unknown type {kind}")
        item_bytes = Struct("<" + code).size
        start = self.position
        self.position += self.length(count, item_bytes) * item_bytes
        view: NumberArray = memoryview(self.buffer)[start : self.position].cast(code)
        return view

    def string_array(self, count: int) -> StringArray:
        start = position = self.position
        unpack, buffer = _U64.unpack_from, self.buffer
        for _ in range(count):  # a tight loop: this is nearly all the time that a header takes
            position += 8 + unpack(buffer, position)[0]
        self.check(position <= self.end, "a string array is longer than the file")
        self.position = position
        return StringArray(buffer, start, count)

    def tensor_infos(self, count: int) -> list[tuple[str, TensorType, tuple[int, ...], int]]:
        infos = []
        names = set()
        for _ in range(count):
            name = self.name()
            self.check(name not in names, f"tensor {name!r} appears twice")
            names.add(name)
            n_dims = self.u32()
            self.check(1 <= n_dims <= MAX_DIMS, f"tensor {name!r} has {n_dims} dimensions")
            dims = tuple(self.u64() for _ in range(n_dims))
            kind = self.u32()
            if kind in REFUSED_TYPES:
                raise UnsupportedModelError(
                    f"{self.path} holds weights of the type {REFUSED_TYPES[kind]}, which is not supported: "
                    "get it in another quantization."
                )
            if kind not in TENSOR_TYPES:
                raise self.damaged(f"tensor {name!r} has the unknown type {kind}")
            infos.append((name, TENSOR_TYPES[kind], dims, self.u64()))
        return infos

    def placed(
        self, infos: list[tuple[str, TensorType, tuple[int, ...], int]], data_offset: int, alignment: int
    ) -> tuple[TensorInfo, ...]:
        """Tensors with their sizes; as llama.cpp, we want each to start where the last one ends, padded."""
        tensors = []
        expected = 0
        for name, kind, dims, offset in infos:
            self.check(all(dims), f"tensor {name!r} has no elements")
            self.check(
                dims[0] % kind.block_size == 0, f"rows of tensor {name!r} do not fill blocks of {kind.name}"
            )
            nbytes = prod(dims) // kind.block_size * kind.type_size
            self.check(offset == expected, f"tensor {name!r} lies at offset {offset}, not {expected}")
            if data_offset + offset + nbytes > self.file_size:
                raise BundleError(
                    f"{self.path} ends inside tensor {name!r}: it is half-written, copy it again."
                )
            tensors.append(TensorInfo(name, kind, dims, data_offset + offset, nbytes))
            expected += nbytes + -nbytes % alignment
        return tuple(tensors)

    def name(self) -> str:
        n_bytes = self.u64()
        self.check(n_bytes <= MAX_NAME_BYTES, "a name in its header is absurdly long")
        return self.take(self.length(n_bytes)).decode()

    def count(self, what: str, least_bytes: int) -> int:
        count = self.u64()
        self.check(count <= MAX_ENTRIES, f"its header claims {count} {what}")
        return self.length(count, least_bytes)

    def length(self, count: int, item_bytes: int = 1) -> int:
        """``count``, if that many items fit into what is left of the header."""
        self.check(
            count * item_bytes <= self.end - self.position, "its header claims more than the file holds"
        )
        return count

    def take(self, n_bytes: int) -> bytes:
        start = self.position
        self.position += n_bytes
        return self.buffer[start : self.position]

    def u32(self) -> int:
        number: int = self.unpack(_U32)
        return number

    def u64(self) -> int:
        number: int = self.unpack(_U64)
        return number

    def unpack(self, struct: Struct) -> Any:
        (number,) = struct.unpack_from(self.buffer, self.position)
        self.position += struct.size
        return number

    def check(self, sound: bool, what: str) -> None:
        if not sound:
            raise self.damaged(what)

    def damaged(self, what: str) -> BundleError:
        return BundleError(
            f"{self.path} is damaged ({what}): convert the checkpoint again, or copy the file again."
        )
