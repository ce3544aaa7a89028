"""Importance matrices in both formats of llama-imatrix, written by gguf-py and by hand."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Sums = Mapping[str, NDArray[np.float32]]


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
