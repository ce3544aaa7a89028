"""Reads an ONNX file without the onnx package: inputs, outputs, and where its weights lie.

Who only answers need not install onnx and protobuf (35 MB), and a file from a stranger deserves a stricter
reader: a small one of protobuf's wire format (https://protobuf.dev/programming-guides/encoding), with the
messages of onnx.proto. What is not in the tables below is refused, so that no weights, and no name of a file,
can hide from it (in an attribute of a node, a sparse tensor, a function, …).
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, TypeVar

from acestep_gguf.errors import BundleError

T = TypeVar("T")

# Far above any real tower; they bound what a hostile file can cost.
MAX_ONNX_BYTES: Final = 16 * 2**20  # the graph alone; its weights lie in the external data file
MAX_FIELDS: Final = 2**17  # of one message
MAX_DIMS: Final = 8
MAX_DIM: Final = 2**48

FLOAT: Final = 1
# enum TensorProto.DataType: bytes of an element.
ELEMENT_BYTES: Final = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2,
}  # fmt: skip

# Wire types that a field may have; several numbers may be "packed" into one field with a length.
_NUMBER, _NUMBERS, _FLOAT32, _FLOAT32S, _BYTES = (0,), (0, 2), (5,), (5, 2), (2,)

# Messages of onnx.proto: number of a field -> its name and wire types.
Fields = Mapping[int, tuple[str, tuple[int, ...]]]
_MODEL: Final[Fields] = {
    1: ("ir_version", _NUMBER), 2: ("producer_name", _BYTES), 3: ("producer_version", _BYTES),
    4: ("domain", _BYTES), 5: ("model_version", _NUMBER), 6: ("doc_string", _BYTES), 7: ("graph", _BYTES),
    8: ("opset_import", _BYTES), 14: ("metadata_props", _BYTES),
}  # fmt: skip
_GRAPH: Final[Fields] = {
    1: ("node", _BYTES), 2: ("name", _BYTES), 5: ("initializer", _BYTES), 10: ("doc_string", _BYTES),
    11: ("input", _BYTES), 12: ("output", _BYTES), 13: ("value_info", _BYTES), 16: ("metadata_props", _BYTES),
}  # fmt: skip
_NODE: Final[Fields] = {
    1: ("input", _BYTES), 2: ("output", _BYTES), 3: ("name", _BYTES), 4: ("op_type", _BYTES),
    5: ("attribute", _BYTES), 6: ("doc_string", _BYTES), 7: ("domain", _BYTES), 9: ("metadata_props", _BYTES),
}  # fmt: skip
_ATTRIBUTE: Final[Fields] = {  # without tensors and graphs
    1: ("name", _BYTES), 2: ("f", _FLOAT32), 3: ("i", _NUMBER), 4: ("s", _BYTES), 7: ("floats", _FLOAT32S),
    8: ("ints", _NUMBERS), 9: ("strings", _BYTES), 13: ("doc_string", _BYTES), 20: ("type", _NUMBER),
}  # fmt: skip
_TENSOR: Final[Fields] = {  # of the fields for weights inside the file, only raw_data
    1: ("dims", _NUMBERS), 2: ("data_type", _NUMBER), 8: ("name", _BYTES), 9: ("raw_data", _BYTES),
    12: ("doc_string", _BYTES), 13: ("external_data", _BYTES), 14: ("data_location", _NUMBER),
}  # fmt: skip
_ENTRY: Final[Fields] = {1: ("key", _BYTES), 2: ("value", _BYTES)}
_VALUE_INFO: Final[Fields] = {
    1: ("name", _BYTES), 2: ("type", _BYTES), 3: ("doc_string", _BYTES), 4: ("metadata_props", _BYTES),
}  # fmt: skip
_TYPE: Final[Fields] = {1: ("tensor_type", _BYTES), 6: ("denotation", _BYTES)}
_TENSOR_TYPE: Final[Fields] = {1: ("elem_type", _NUMBER), 2: ("shape", _BYTES)}
_SHAPE: Final[Fields] = {1: ("dim", _BYTES)}
_DIM: Final[Fields] = {1: ("dim_value", _NUMBER), 2: ("dim_param", _BYTES), 3: ("denotation", _BYTES)}


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output; a dimension that is not fixed is its name, or None."""

    name: str
    data_type: int
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where an initializer lies: ``length`` bytes at ``offset`` of the file ``location``."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight of ``n_bytes``; ``external`` is None if it lies inside the ONNX file."""

    name: str
    dims: tuple[int, ...]
    n_bytes: int
    external: ExternalData | None


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file, but for its nodes. Each weight has the length that its shape and type need."""

    path: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: tuple[Initializer, ...]


class _Malformed(Exception):
    """What is wrong with the file."""


def read_onnx(path: Path) -> OnnxFile:
    """Read and check the ONNX file ``path``; the data file is not looked at.

    Raises:
        BundleError: missing, too large, damaged, or of a kind that conversion does not write.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_ONNX_BYTES:
            raise BundleError(f"{path} is too large for a graph ({n_bytes} bytes): convert it again.")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): convert the checkpoint again."
        ) from error
    try:
        graph = _Message(memoryview(data), _MODEL).message("graph", _GRAPH)
        for node in graph.messages("node", _NODE):
            deque(node.messages("attribute", _ATTRIBUTE), maxlen=0)  # read only to see that they are sound
        initializers = tuple(_initializer(tensor) for tensor in graph.messages("initializer", _TENSOR))
        if len({tensor.name for tensor in initializers}) < len(initializers):
            raise _Malformed("two of its weights have one name")
        inputs, outputs = (
            tuple(_value(value) for value in graph.messages(side, _VALUE_INFO))
            for side in ("input", "output")
        )
    except (_Malformed, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is damaged ({error}): convert the checkpoint again, or copy the file again."
        ) from error
    return OnnxFile(path, inputs, outputs, initializers)


def _initializer(tensor: "_Message") -> Initializer:
    name = tensor.text("name")
    dims = tuple(tensor.numbers("dims"))
    element_bytes = ELEMENT_BYTES.get(tensor.number("data_type"))
    if element_bytes is None or len(dims) > MAX_DIMS or any(dim > MAX_DIM for dim in dims):
        raise _Malformed(f"weight {name!r} has an unknown type or an absurd shape")
    n_bytes = prod(dims) * element_bytes
    is_external, inline = tensor.number("data_location"), tensor.blob("raw_data")
    external = _external_data(name, tensor) if is_external == 1 else None
    length = external.length if external else len(inline)
    if length != n_bytes or is_external > 1 or (external and inline):
        raise _Malformed(f"weight {name!r} has {length} bytes, its shape and type need {n_bytes}")
    return Initializer(name, dims, n_bytes, external)


def _external_data(name: str, tensor: "_Message") -> ExternalData:
    entries = [(entry.text("key"), entry.text("value")) for entry in tensor.messages("external_data", _ENTRY)]
    match sorted(entries):
        case [("length", length), ("location", location), ("offset", offset)] if all(
            re.fullmatch("[0-9]{1,19}", number) for number in (length, offset)
        ):
            return ExternalData(location, int(offset), int(length))
    raise _Malformed(f"weight {name!r} does not have one location, one offset and one length")


def _value(value: "_Message") -> Value:
    tensor_type = value.message("type", _TYPE).message("tensor_type", _TENSOR_TYPE)
    dims = tensor_type.message("shape", _SHAPE).messages("dim", _DIM)
    shape = tuple(
        dim.number("dim_value") if dim.has("dim_value") else dim.text("dim_param") or None for dim in dims
    )
    return Value(value.text("name"), tensor_type.number("elem_type"), shape)


class _Message:
    """A message's fields as they stand in the file; only those of ``known`` may be there."""

    def __init__(self, data: memoryview, known: Fields) -> None:
        self._numbers: dict[str, list[int]] = defaultdict(list)
        self._blobs: dict[str, list[memoryview]] = defaultdict(list)
        position = n_fields = 0
        while position < len(data):
            tag, position = _varint(data, position)
            name, wire_types = known.get(tag >> 3, ("", ()))
            if tag & 7 not in wire_types:
                raise _Malformed(f"field {tag >> 3} of type {tag & 7} is not expected where it stands")
            match tag & 7:
                case 0:
                    number, position = _varint(data, position)
                    self._numbers[name].append(number)
                case 2:
                    blob, position = _blob(data, position)
                    if wire_types is _NUMBERS:
                        self._numbers[name] += _packed(blob)
                    else:
                        self._blobs[name].append(blob)
                case 5:  # float32: nobody asks for it
                    _, position = _cut(data, position, 4)
            n_fields += 1
            if n_fields > MAX_FIELDS:
                raise _Malformed("it has absurdly many fields")

    def has(self, name: str) -> bool:
        """Whether the number ``name`` is there."""
        return name in self._numbers

    def numbers(self, name: str) -> list[int]:
        """All numbers ``name``; none is negative."""
        return self._numbers.get(name, [])

    def number(self, name: str) -> int:
        """The number ``name``, 0 if it is not there."""
        return _only(name, self.numbers(name)) or 0

    def blob(self, name: str) -> memoryview:
        """The bytes ``name``, empty if they are not there."""
        return _only(name, self._blobs.get(name, [])) or memoryview(b"")

    def text(self, name: str) -> str:
        """The text ``name``, empty if it is not there."""
        return bytes(self.blob(name)).decode()

    def messages(self, name: str, known: Fields) -> Iterator["_Message"]:
        return (_Message(blob, known) for blob in self._blobs.get(name, []))

    def message(self, name: str, known: Fields) -> "_Message":
        if name not in self._blobs:
            raise _Malformed(f"it has no {name}")
        return _Message(self.blob(name), known)


def _only(name: str, values: list[T]) -> T | None:
    if len(values) > 1:
        raise _Malformed(f"{name} stands twice")
    return values[0] if values else None


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at ``position``, and where it ends."""
    try:
        number = data[position]
        if number < 128:  # nearly all are
            return number, position + 1
        number &= 127
        for i in range(1, 10):
            byte = data[position + i]
            number |= (byte & 127) << 7 * i
            if byte < 128 and number < 2**64:
                return number, position + i + 1
    except IndexError:
        pass
    raise _Malformed("a number is cut short or too long")


def _packed(data: memoryview) -> list[int]:
    numbers: list[int] = []
    position = 0
    while position < len(data) and len(numbers) < MAX_FIELDS:
        number, position = _varint(data, position)
        numbers.append(number)
    return numbers


def _blob(data: memoryview, position: int) -> tuple[memoryview, int]:
    """The bytes of a field at ``position``, after their length, and where they end."""
    length, position = _varint(data, position)
    return _cut(data, position, length)


def _cut(data: memoryview, position: int, length: int) -> tuple[memoryview, int]:
    if length > len(data) - position:
        raise _Malformed("it ends inside a field")
    return data[position : position + length], position + length
