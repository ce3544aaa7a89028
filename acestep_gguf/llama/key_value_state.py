"""The keys and values of one sequence, as llama.cpp hands them out and takes them back.

The bytes of a state (llama_kv_cache::state_write in llama.cpp): its start, see binding.state_start; whether
values are transposed, which they are without flash attention; the keys of each layer, then all values.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Context, state_start
from acestep_gguf.llama.ggml_rows import from_floats, row_bytes, to_floats
from acestep_gguf.llama.params import CACHE_TYPES

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

UINT8: Final = np.dtype(np.uint8)
ROWS_HEAD: Final = [("type", "<i4"), ("row_bytes", "<u8")]
TRANSPOSED_HEAD: Final = [("type", "<i4"), ("number_bytes", "<u4"), ("width", "<u4")]


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

    def layout(self, n: int) -> npt.DTypeLike:
        """A whole state with ``n`` positions."""
        key_bytes, value_bytes = row_bytes(self.type_k, self.width), row_bytes(self.type_v, self.width)
        keys = np.dtype([("head", ROWS_HEAD), ("rows", UINT8, (n, key_bytes))])
        values = np.dtype([("head", ROWS_HEAD), ("rows", UINT8, (n, value_bytes))])
        if self.is_transposed:
            rows = (self.width, n, value_bytes // self.width)
            values = np.dtype([("head", TRANSPOSED_HEAD), ("rows", UINT8, rows)])
        start = state_start(np.zeros(4, np.uint8), n)
        return np.dtype(
            [
                ("start", UINT8, len(start)),
                ("is_transposed", "<u4"),
                ("n_layers", "<u4"),
                ("keys", keys, self.n_layers),
                ("values", values, self.n_layers),
            ]
        )


class KeyValueState:
    """Keys and values of the positions that a sequence has, and of ``n_new`` more, which are set one by one.

    Raises:
        DecodeError: llama.cpp's state is of another layout than ``shape`` says.
    """

    def __init__(self, context: Context, shape: KeyValueShape, n_new: int, *, sequence: int = 0) -> None:
        self.n_past = context.n_past(sequence)
        self._shape = shape
        self._context, self._sequence = context, sequence
        past = context.state(sequence=sequence)
        n = self.n_past + n_new
        self._data = np.zeros(1, shape.layout(n))
        whole = self._data[0]
        whole["start"] = state_start(past[:4], n)
        whole["is_transposed"], whole["n_layers"] = shape.is_transposed, shape.n_layers
        keys, values = whole["keys"], whole["values"]
        keys["head"]["type"], values["head"]["type"] = shape.type_k, shape.type_v
        keys["head"]["row_bytes"] = row_bytes(shape.type_k, shape.width)
        if shape.is_transposed:
            values["head"]["number_bytes"] = row_bytes(shape.type_v, shape.width) // shape.width
            values["head"]["width"] = shape.width
        else:
            values["head"]["row_bytes"] = row_bytes(shape.type_v, shape.width)
        if self.n_past:
            self._take(past)

    def _take(self, past: UInt8Array) -> None:
        """Copy what the sequence has."""
        layout = np.dtype(self._shape.layout(self.n_past))
        whole = self._data[0]
        if len(past) == layout.itemsize:
            old = past.view(layout)[0]
            same = all(old[name] == whole[name] for name in ("is_transposed", "n_layers"))
            if same and all((old[side]["head"] == whole[side]["head"]).all() for side in ("keys", "values")):
                whole["keys"]["rows"][:, : self.n_past] = old["keys"]["rows"]
                if self._shape.is_transposed:
                    whole["values"]["rows"][:, :, : self.n_past] = old["values"]["rows"]
                else:
                    whole["values"]["rows"][:, : self.n_past] = old["values"]["rows"]
                return
        raise DecodeError("llama.cpp lays out keys and values otherwise than is expected.")

    def past(self, bid: int) -> tuple[FloatArray, FloatArray]:
        """What the sequence has in layer ``bid``, float32 [1, n_head_kv, n_past, n_embd_head] each."""
        shape = self._shape
        keys = self._data["keys"]["rows"][0, bid, : self.n_past]
        if shape.is_transposed:
            values = self._data["values"]["rows"][0, bid, :, : self.n_past].transpose(1, 0, 2)
            values = values.reshape(self.n_past, row_bytes(shape.type_v, shape.width))
        else:
            values = self._data["values"]["rows"][0, bid, : self.n_past]
        return self._heads(to_floats(keys, shape.type_k, shape.width)), self._heads(
            to_floats(values, shape.type_v, shape.width)
        )

    def set(self, bid: int, keys: FloatArray, values: FloatArray) -> None:
        """Set what is new in layer ``bid``: keys and values float32 [1, n_head_kv, n_new, n_embd_head]."""
        shape = self._shape
        new_keys, new_values = (
            heads[0].transpose(1, 0, 2).reshape(-1, shape.width) for heads in (keys, values)
        )
        self._data["keys"]["rows"][0, bid, self.n_past :] = from_floats(new_keys, shape.type_k)
        rows = from_floats(new_values, shape.type_v)
        if shape.is_transposed:
            numbers = rows.reshape(len(rows), shape.width, -1).transpose(1, 0, 2)
            self._data["values"]["rows"][0, bid, :, self.n_past :] = numbers
        else:
            self._data["values"]["rows"][0, bid, self.n_past :] = rows

    def hand_over(self) -> None:
        """Let the sequence have all of it.

        Raises:
            DecodeError: llama.cpp does not take it; nothing of the sequence is computed any more.
        """
        n = len(self._data["keys"]["rows"][0, 0])
        if not self._context.restore(self._data.view(np.uint8), n, sequence=self._sequence):
            raise DecodeError("llama.cpp does not take keys and values that onnxruntime computed.")

    def _heads(self, rows: FloatArray) -> FloatArray:
        heads = rows.reshape(len(rows), self._shape.n_head_kv, self._shape.n_embd_head)
        return np.ascontiguousarray(heads.transpose(1, 0, 2))[np.newaxis]
