"""Importance matrices in both formats of llama-imatrix, written by gguf-py and by hand."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from acestep_gguf.bundle.gguf_header import read_gguf_header

Sums = Mapping[str, NDArray[np.float32]]


def random_sums(source: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
    """Sums and counts for the matrices of ``source``, as llama-imatrix has them: no embeddings, no output."""
    rng = np.random.default_rng(5)
    lengths = {
        tensor.name: tensor.dims[0]
        for tensor in read_gguf_header(source).tensors
        if tensor.name.startswith("blk") and len(tensor.dims) == 2
    }
    sums = {name: (rng.random(length) ** 8 * 1e4).astype(np.float32) for name, length in lengths.items()}
    return sums, {name: float(i * 37 % 11) for i, name in enumerate(lengths)}  # a count of zero among them


def write_gguf_imatrix(
    path: Path,
    sums: Sums,
    counts: Mapping[str, float],
    *,
    datasets: Sequence[str] | None = ("wiki.train.raw",),
    n_chunks: int = 7,
) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    if datasets is not None:
        writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", n_chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values[np.newaxis])
        writer.add_tensor(f"{name}.counts", np.array([[counts[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy_entry(name: bytes, n_calls: int, values: NDArray[np.float32]) -> bytes:
    return struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, values.size) + values.tobytes()


def legacy_bytes(entries: Sequence[bytes], tail: bytes = b"", *, n_entries: int | None = None) -> bytes:
    return struct.pack("<i", len(entries) if n_entries is None else n_entries) + b"".join(entries) + tail
