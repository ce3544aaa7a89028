"""The keys and values of one sequence, as llama.cpp hands them out and takes them back.

The bytes of a state (llama_kv_cache::state_write in llama.cpp): its start, see state_start.py; whether
values are transposed, which they are without flash attention; the keys of each layer, then all values.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Context
from acestep_gguf.llama.ggml_rows import from_floats, row_bytes, to_floats
from acestep_gguf.llama.params import CACHE_TYPES
from acestep_gguf.llama.state_start import state_start, state_start_bytes

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

HEAD: Final = struct.Struct("<iQ")  # before the rows of a layer: type, bytes of a row
TRANSPOSED_HEAD: Final = struct.Struct("<iII")  # type, bytes of a number, numbers of a position
FLAGS: Final = struct.Struct("<II")  # before all layers: whether values are transposed, how many layers


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueShape:
    """What decides how keys and values lie in a state; types as in enum ggml_type."""

    n_layers: int
    n_head_kv: int
    n_embd_head: int
    type_k: int
    type_v: int
    is_transposed: bool

    @classmethod
    def of(cls, context: Context, *, n_layers: int, n_head_kv: int, n_embd_head: int) -> Self:
        """Of a context of a decoder with so many layers, and heads of keys of such a size."""
        return cls(
            n_layers=n_layers,
            n_head_kv=n_head_kv,
            n_embd_head=n_embd_head,
            type_k=CACHE_TYPES[context.params.type_k],
            type_v=CACHE_TYPES[context.params.type_v],
            is_transposed=context.params.transposes_values,
        )

    @property
    def width(self) -> int:
        """Numbers that the keys of a position are in one layer, and the values."""
        return self.n_head_kv * self.n_embd_head


class StateLayout:
    """Where keys and values of ``n`` positions lie in a state."""

    def __init__(self, shape: KeyValueShape, n: int) -> None:
        self._shape, self._n = shape, n
        self._key_bytes = row_bytes(shape.type_k, shape.width)
        self._value_bytes = row_bytes(shape.type_v, shape.width)
        self._flags_at = state_start_bytes(n)
        self._keys_at = self._flags_at + FLAGS.size
        self._keys_stride = HEAD.size + n * self._key_bytes
        self._values_at = self._keys_at + shape.n_layers * self._keys_stride
        self._values_stride = HEAD.size + n * self._value_bytes  # both kinds of heads are as long
        self.n_bytes = self._values_at + shape.n_layers * self._values_stride

    def heads(self) -> Iterator[tuple[slice, UInt8Array]]:
        """Where a state says how it lies, and what."""
        shape = self._shape
        keys = HEAD.pack(shape.type_k, self._key_bytes)
        values = HEAD.pack(shape.type_v, self._value_bytes)
        if shape.is_transposed:
            values = TRANSPOSED_HEAD.pack(shape.type_v, self._value_bytes // shape.width, shape.width)
        said = [(self._flags_at, FLAGS.pack(shape.is_transposed, shape.n_layers))]
        for bid in range(shape.n_layers):
            said.append((self._keys_at + bid * self._keys_stride, keys))
            said.append((self._values_at + bid * self._values_stride, values))
        for at, data in said:
            yield slice(at, at + len(data)), np.frombuffer(data, np.uint8)

    def keys(self, state: UInt8Array, bid: int) -> UInt8Array:
        """The keys of layer ``bid``, uint8 [n, bytes of a row], a view."""
        at = self._keys_at + bid * self._keys_stride + HEAD.size
        return state[at : at + self._n * self._key_bytes].reshape(self._n, self._key_bytes)

    def values(self, state: UInt8Array, bid: int) -> UInt8Array:
        """The values of layer ``bid``, uint8 [n, parts of a row, bytes of a part], a view."""
        at = self._values_at + bid * self._values_stride + HEAD.size
        rows = state[at : at + self._n * self._value_bytes]
        if self._shape.is_transposed:
            width = self._shape.width
            return rows.reshape(width, self._n, self._value_bytes // width).transpose(1, 0, 2)
        return rows.reshape(self._n, 1, self._value_bytes)


class KeyValueState:
    """Keys and values of the positions that a sequence has, and of ``n_new`` more, which are set one by one.

    There is one copy of them, into which llama.cpp writes, and from which it reads.

    Raises:
        DecodeError: llama.cpp's state is of another layout than ``shape`` says.
    """

    def __init__(self, context: Context, shape: KeyValueShape, n_new: int, *, sequence: int = 0) -> None:
        self.n_past = context.n_past(sequence)
        self._shape = shape
        self._context, self._sequence = context, sequence
        self._n = self.n_past + n_new
        self._layout = StateLayout(shape, self._n)
        self._state = np.empty(self._layout.n_bytes + context.state_room, np.uint8)
        if self.n_past:
            self._take_past(StateLayout(shape, self.n_past))
        else:
            context.state(sequence=sequence, buffer=self._state)  # for its magic number
        start = state_start(self._state[:4], self._n)
        self._state[: len(start)] = start
        for where, said in self._layout.heads():
            self._state[where] = said

    def _take_past(self, layout: StateLayout) -> None:
        """Copy what the sequence has, and make room behind the rows of each layer."""
        problem = "llama.cpp lays out keys and values otherwise than is expected."
        if self._context.state_bytes(sequence=self._sequence) != layout.n_bytes:
            raise DecodeError(problem)
        past = self._context.state(sequence=self._sequence, buffer=self._state)
        if any((past[where] != said).any() for where, said in layout.heads()):
            raise DecodeError(problem)
        # From the last to the first: each moves back, over what has been moved.
        for bid in reversed(range(self._shape.n_layers)):
            self._layout.values(self._state, bid)[: self.n_past] = layout.values(past, bid)
        for bid in reversed(range(self._shape.n_layers)):
            self._layout.keys(self._state, bid)[: self.n_past] = layout.keys(past, bid)

    def past(self, bid: int) -> tuple[FloatArray, FloatArray]:
        """What the sequence has in layer ``bid``, float32 [1, n_head_kv, n_past, n_embd_head] each."""
        shape = self._shape
        keys = self._layout.keys(self._state, bid)[: self.n_past]
        values = self._layout.values(self._state, bid)[: self.n_past]
        values = values.reshape(self.n_past, row_bytes(shape.type_v, shape.width))
        return self._heads(to_floats(keys, shape.type_k, shape.width)), self._heads(
            to_floats(values, shape.type_v, shape.width)
        )

    def set(self, bid: int, keys: FloatArray, values: FloatArray) -> None:
        """Set what is new in layer ``bid``: keys and values float32 [1, n_head_kv, n_new, n_embd_head]."""
        shape = self._shape
        new_keys, new_values = (
            heads[0].transpose(1, 0, 2).reshape(-1, shape.width) for heads in (keys, values)
        )
        self._layout.keys(self._state, bid)[self.n_past :] = from_floats(new_keys, shape.type_k)
        values_there = self._layout.values(self._state, bid)[self.n_past :]
        values_there[:] = from_floats(new_values, shape.type_v).reshape(values_there.shape)

    def hand_over(self) -> None:
        """Let the sequence have all of it.

        Raises:
            DecodeError: llama.cpp does not take it; nothing of the sequence is computed any more.
        """
        if not self._context.restore(self._state, self._n, sequence=self._sequence, has_room=True):
            raise DecodeError("llama.cpp does not take keys and values that onnxruntime computed.")

    def _heads(self, rows: FloatArray) -> FloatArray:
        heads = rows.reshape(len(rows), self._shape.n_head_kv, self._shape.n_embd_head)
        return np.ascontiguousarray(heads.transpose(1, 0, 2))[np.newaxis]
