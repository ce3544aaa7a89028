"""GGUF files written anew with other keys, names and types: what other converters might have made."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.quantize.ggml import quantize_rows
from acestep_gguf.quantize.gguf_layout import lay_out
from acestep_gguf.quantize.gguf_source import GgufFile
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice

Tensors = dict[str, NDArray[np.float32]]


def rewrite(
    source: Path,
    out: Path,
    *,
    metadata: Mapping[str, bytes | None] | None = None,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    matrices: QType | None = None,
) -> Path:
    """Write ``source`` as ``out``: keys that are None are dropped, matrices get the type that is given."""
    with GgufFile(source) as file:
        keys = {key: bytes(value) for key, value in file.header.encoded.items()} | dict(metadata or {})
        read = {info.name: file.tensor(info, max_dims=4) for info in file.header.tensors}
        qtypes = {name: tensor.qtype for name, tensor in read.items()}
        tensors = change({name: tensor.read() for name, tensor in read.items()})
    types = {name: _type(name, tensor, qtypes, matrices) for name, tensor in tensors.items()}
    shapes = [TensorShape(name, tensor.shape) for name, tensor in tensors.items()]
    layout = lay_out(
        {key: value for key, value in keys.items() if value is not None},
        shapes,
        {name: TypeChoice(qtype, qtype) for name, qtype in types.items()},
    )
    content = bytearray(layout.header)
    for placed in layout.tensors:
        content += bytes(placed.offset - len(content))
        rows = np.ascontiguousarray(tensors[placed.name].reshape(-1, placed.shape[-1]))
        blocks = quantize_rows(rows, placed.qtype)
        assert blocks is not None
        content += blocks.tobytes()
    out.write_bytes(content + bytes(layout.n_bytes - len(content)))
    return out


def _type(
    name: str, tensor: NDArray[np.float32], qtypes: Mapping[str, QType], matrices: QType | None
) -> QType:
    if matrices is not None and tensor.ndim == 2:
        return matrices
    return qtypes.get(name, QType.F32)


def retype(source: Path, out: Path, types: Mapping[str, QType]) -> Path:
    """Write ``source`` with other types of the tensors in ``types``; all weights become 0, a hole."""
    header = read_gguf_header(source)
    choices = {tensor.name: types.get(tensor.name, QType[tensor.type.name]) for tensor in header.tensors}
    layout = lay_out(
        {key: bytes(value) for key, value in header.encoded.items()},
        [TensorShape(tensor.name, tensor.dims[::-1]) for tensor in header.tensors],
        {name: TypeChoice(qtype, qtype) for name, qtype in choices.items()},
    )
    with out.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.n_bytes)
    return out
