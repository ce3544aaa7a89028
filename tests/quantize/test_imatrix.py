"""Reading importance matrices; test_requantize.py compares what comes out with llama.cpp's."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import ImatrixError
from acestep_gguf.quantize.imatrix import MAX_BYTES, Imatrix, read_imatrix
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice
from tests.support.imatrix_files import legacy_bytes, legacy_entry, write_gguf_imatrix

SUMS = {
    "blk.0.attn_q.weight": np.array([3.0, 0.5, 1e-9, 12.0], np.float32),
    "blk.0.ffn_down.weight": np.array([1.0, 2.0, 4.0], np.float32),
}
COUNTS = {"blk.0.attn_q.weight": 6.0, "blk.0.ffn_down.weight": 0.0}
LEGACY = legacy_bytes(
    [legacy_entry(b"blk.0.attn_q.weight", 6, SUMS["blk.0.attn_q.weight"]),
     legacy_entry(b"blk.0.ffn_down.weight", 0, SUMS["blk.0.ffn_down.weight"])],
    struct.pack("<ii", 7, 5) + b"a.txt",
)  # fmt: skip


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "imatrix"
    path.write_bytes(content)
    return path


def test_sums_in_a_gguf_file_are_divided_by_their_counts(tmp_path: Path) -> None:
    imatrix = read_imatrix(write_gguf_imatrix(tmp_path / "imatrix", SUMS, COUNTS))
    assert imatrix.entries.keys() == SUMS.keys()
    first, second = imatrix.entries["blk.0.attn_q.weight"], imatrix.entries["blk.0.ffn_down.weight"]
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_array_equal(first, SUMS["blk.0.attn_q.weight"] / np.float32(6))
    np.testing.assert_array_equal(second, np.ones(3, np.float32))  # without a count, all count the same
    assert (imatrix.n_chunks, imatrix.dataset) == (7, "wiki.train.raw")


def test_matrices_of_experts_are_divided_one_by_one(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "imatrix", "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("w.in_sum2", np.array([[2, 4], [3, 9], [5, 5]], np.float32))
    writer.add_tensor("w.counts", np.array([[2], [3.4], [0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_imatrix(tmp_path / "imatrix").entries["w"].tolist() == [1, 2, 1, 3, 1, 1]


@pytest.mark.parametrize(
    ("tail", "n_chunks", "dataset"),
    [
        (b"", 0, None),
        (struct.pack("<i", 9), 9, None),
        (struct.pack("<ii", 9, 0), 9, None),
        (struct.pack("<ii", 9, 5) + b"a.txt", 9, "a.txt"),
        (struct.pack("<ii", -9, 6) + b"a.txt\0", 0, "a.txt"),
    ],
)
def test_sums_in_the_older_format_are_divided_by_their_calls(
    tmp_path: Path, tail: bytes, n_chunks: int, dataset: str | None
) -> None:
    entries = [legacy_entry(name.encode(), int(COUNTS[name]), values) for name, values in SUMS.items()]
    imatrix = read_imatrix(write(tmp_path, legacy_bytes(entries, tail)))
    np.testing.assert_array_equal(
        imatrix.entries["blk.0.attn_q.weight"], SUMS["blk.0.attn_q.weight"] / np.float32(6)
    )
    np.testing.assert_array_equal(
        imatrix.entries["blk.0.ffn_down.weight"], SUMS["blk.0.ffn_down.weight"]
    )  # as it is
    assert (imatrix.n_chunks, imatrix.dataset) == (n_chunks, dataset)


def small(**values: list[float]) -> Imatrix:
    entries = {f"{name}.weight": np.array(entry, np.float32) for name, entry in values.items()}
    return Imatrix(path=Path("small.gguf"), entries=entries, n_chunks=0, dataset=None)


def test_only_tensors_that_change_their_type_are_weighed() -> None:
    tensors = [TensorShape(f"{name}.weight", (2, 3)) for name in "qkv"]
    choices = {
        "q.weight": TypeChoice(QType.Q8_0, QType.Q8_0),
        "k.weight": TypeChoice(QType.F32, QType.F32),
        "v.weight": TypeChoice(QType.Q8_0, QType.Q8_0),
    }
    found = small(q=[1, 2, 3], k=[1, 2]).importance_of(tensors, choices)
    assert {name: entry.tolist() for name, entry in found.items()} == {"q.weight": [1, 2, 3]}


def test_an_imatrix_of_another_model_is_refused_but_for_the_embeddings() -> None:
    choice = TypeChoice(QType.Q8_0, QType.Q8_0)
    for name in ("q.weight", "output.weight"):
        with pytest.raises(ImatrixError, match=r"another model \(it has 2 values for .*, whose rows have 3"):
            small(q=[1, 2], output=[1, 2]).importance_of([TensorShape(name, (2, 3))], {name: choice})
    embeddings = TensorShape("token_embd.weight", (2, 3))
    assert small(token_embd=[1, 2]).importance_of([embeddings], {"token_embd.weight": choice}) == {}


def test_metadata_is_cut_to_what_llama_cpp_can_hold() -> None:
    imatrix = Imatrix(path=Path("p" * 126 + "é"), entries={}, n_chunks=0, dataset="d" * 200)
    assert imatrix.metadata["quantize.imatrix.file"].endswith(struct.pack("<Q", 126) + b"p" * 126)
    assert imatrix.metadata["quantize.imatrix.dataset"].endswith(b"\x7f" + bytes(7) + b"d" * 127)
    assert "quantize.imatrix.chunks_count" not in imatrix.metadata


VALUES = np.ones(2, np.float32)
HOSTILE = {
    "empty": b"",
    "no entries": legacy_bytes([]),
    "a count of entries below zero": legacy_bytes([], n_entries=-1),
    "more entries than are there": legacy_bytes([legacy_entry(b"a", 1, VALUES)], n_entries=2),
    "absurdly many entries": legacy_bytes([], n_entries=2**31 - 1),
    "a name longer than the file": legacy_bytes([struct.pack("<i", 200) + b"a"]),
    "an absurd name": legacy_bytes([struct.pack("<i", 2**31 - 1)]),
    "a name of less than nothing": legacy_bytes([struct.pack("<i", -1)]),
    "values beyond the file": legacy_bytes([struct.pack("<icii", 1, b"a", 1, 2**26 - 1)]),
    "absurdly many values": legacy_bytes([struct.pack("<icii", 1, b"a", 1, 2**31 - 1)]),
    "no values": legacy_bytes([legacy_entry(b"a", 1, VALUES[:0])]),
    "a name twice": legacy_bytes([legacy_entry(b"a", 1, VALUES), legacy_entry(b"a", 1, VALUES)]),
    "NaN": legacy_bytes([legacy_entry(b"a", 1, VALUES * np.float32("nan"))]),
    "infinite": legacy_bytes([legacy_entry(b"a", 0, VALUES * np.float32("inf"))]),
    "negative": legacy_bytes([legacy_entry(b"a", 1, -VALUES)]),
    "a dataset beyond the file": legacy_bytes([legacy_entry(b"a", 1, VALUES)], struct.pack("<ii", 1, 9)),
    "a GGUF's magic and nothing else": b"GGUF",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_files_are_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImatrixError, match="make it with llama-imatrix again"):
        read_imatrix(write(tmp_path, HOSTILE[name]))


def test_what_is_no_file_or_far_too_large_is_not_read(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path, "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (tmp_path / "a", "cannot be read"),
    ):
        with pytest.raises(ImatrixError, match=problem):
            read_imatrix(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImatrixError, match="far more than an imatrix"):
        read_imatrix(tmp_path / "large")


@pytest.mark.parametrize(
    ("sums", "counts", "datasets"),
    [
        ([1.0, np.nan], 1, ["a"]),
        ([1.0, np.inf], 1, ["a"]),
        ([1.0, -1.0], 1, ["a"]),
        ([3e38, 1.0], np.nan, ["a"]),
        ([1.0, 1.0], np.inf, ["a"]),
        ([1.0, 1.0], 1, None),
    ],
)
def test_values_that_no_mean_square_has_are_refused(
    tmp_path: Path, sums: list[float], counts: float, datasets: list[str] | None
) -> None:
    values = {"w": np.array(sums, np.float32)}
    path = write_gguf_imatrix(tmp_path / "imatrix", values, {"w": counts}, datasets=datasets)
    with pytest.raises(ImatrixError, match="make it with llama-imatrix again"):
        read_imatrix(path)


def test_sums_without_counts_and_other_types_are_refused(tmp_path: Path) -> None:
    for index, (suffix, dtype) in enumerate([("counts", np.float16), ("other", np.float32)]):
        writer = gguf.GGUFWriter(tmp_path / str(index), "")
        writer.add_tensor("w.in_sum2", np.ones((1, 4), np.float32))
        writer.add_tensor(f"w.{suffix}", np.ones((1, 1), dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ImatrixError, match="make it with llama-imatrix again"):
            read_imatrix(tmp_path / str(index))


@given(data=st.data(), is_gguf=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_any_damage_is_noticed_or_harmless(tmp_path: Path, data: st.DataObject, is_gguf: bool) -> None:
    """Bytes changed anywhere, and the file cut anywhere: sound values or one error of ours."""
    sound = write_gguf_imatrix(tmp_path / "sound", SUMS, COUNTS).read_bytes() if is_gguf else LEGACY
    content = bytearray(sound[: data.draw(st.integers(0, len(sound)), label="length")])
    positions = st.integers(0, max(0, len(content) - 1))
    for position, byte in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=4)):
        content[position : position + 1] = bytes([byte])
    try:
        entries = read_imatrix(write(tmp_path, bytes(content))).entries
    except ImatrixError:
        return
    assert all(np.isfinite(entry).all() and (entry >= 0).all() for entry in entries.values())
