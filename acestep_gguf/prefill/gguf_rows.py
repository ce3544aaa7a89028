"""Rows of a tensor in a GGUF file as float32, read when they are asked for."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, GGUFHeader
from acestep_gguf.llama.ggml_rows import to_floats

FloatArray = npt.NDArray[np.float32]


class GgufRows:
    """The tensor ``name`` of the file ``header``, mapped."""

    def __init__(self, header: GGUFHeader, name: str) -> None:
        tensor = next(tensor for tensor in header.tensors if tensor.name == name)
        self._n_columns = tensor.dims[0]
        self._type = next(number for number, kind in TENSOR_TYPES.items() if kind == tensor.type)
        data = np.memmap(header.path, np.uint8, "r", tensor.offset, tensor.nbytes)
        self._rows = data.reshape(tensor.n_elements // self._n_columns, -1)

    @classmethod
    def find(cls, header: GGUFHeader, name: str) -> Self | None:
        """The same, or None if there is no such tensor."""
        return cls(header, name) if any(tensor.name == name for tensor in header.tensors) else None

    def read(self, rows: Sequence[int]) -> FloatArray:
        """Float32 [len(rows), row length].

        Raises:
            IndexError: there is no such row.
        """
        return to_floats(self._rows[np.asarray(rows, np.intp)], self._type, self._n_columns)
