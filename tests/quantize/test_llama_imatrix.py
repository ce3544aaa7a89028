"""Files of the real llama-imatrix, of ``TinyCheckpoint()``; scripts/checks/imatrix.py made them."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from acestep_gguf.quantize.imatrix import read_imatrix
from acestep_gguf.quantize.requantize import quantize_gguf
from tests.quantize.conftest import MakeSource
from tests.support.llama_quantize import llama_quantize, read_tensors

FOLDER = Path(__file__).parent / "llama_imatrix"


def gguf_means(path: Path) -> dict[str, NDArray[np.float32]]:
    """Through gguf-py."""
    tensors = {tensor.name: tensor.data.ravel() for tensor in gguf.GGUFReader(path).tensors}
    sums = {name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")}
    return {name: tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"] for name in sums}


def legacy_means(path: Path) -> dict[str, NDArray[np.float32]]:
    """Entry by entry: length and bytes of the name, calls, length and sums."""
    data = path.read_bytes()
    means: dict[str, NDArray[np.float32]] = {}
    (n_entries,), at = struct.unpack_from("<i", data), 4
    for _ in range(n_entries):
        (n_name,) = struct.unpack_from("<i", data, at)
        name = data[at + 4 : at + 4 + n_name].decode()
        n_calls, n_values = struct.unpack_from("<ii", data, at + 4 + n_name)
        at += 12 + n_name + 4 * n_values
        sums = np.frombuffer(data[at - 4 * n_values : at], np.float32)
        means[name] = sums / np.float32(n_calls)
    return means


MEANS = {"imatrix.gguf": gguf_means, "imatrix.dat": legacy_means}


@pytest.mark.parametrize("file", MEANS)
def test_every_entry_is_read(file: str) -> None:
    imatrix, means = read_imatrix(FOLDER / file), MEANS[file](FOLDER / file)
    assert imatrix.entries.keys() == means.keys()
    assert len(means) == 2 * 7  # the matrices of two layers
    for name, mean in means.items():
        np.testing.assert_array_equal(imatrix.entries[name], mean)
    assert imatrix.dataset == "text.txt"
    assert imatrix.n_chunks > 10


@pytest.mark.parametrize("file", MEANS)
def test_blocks_are_llama_quantizes(tmp_path: Path, make_source: MakeSource, file: str) -> None:
    source = make_source("F16")
    quantize_gguf(source, tmp_path / "ours.gguf", "Q4_K_M", imatrix=FOLDER / file)
    means = MEANS[file](FOLDER / file)
    expected = llama_quantize(source, tmp_path / "expected.gguf", "Q4_K_M", imatrix=means)
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(expected)
