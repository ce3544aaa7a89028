import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_checkpoints import Dtype, write_safetensors

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, header: Any, n_data: int = 0, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(n_data))
    return path


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_are_read_exactly(tmp_path: Path, dtype: Dtype) -> None:
    # Values that every dtype holds exactly.
    first = np.arange(-24, 24, dtype=np.float32).reshape(8, 6) / np.float32(8)
    second = np.arange(5, dtype=np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"first": first, "second": second}, dtype)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {"first": (8, 6), "second": (5,)}
    np.testing.assert_array_equal(file.tensors["first"].read(), first)
    np.testing.assert_array_equal(file.tensors["first"].read_rows(3, 5), first[3:5])
    np.testing.assert_array_equal(file.tensors["second"].read(), second)
    np.testing.assert_array_equal(file.tensors["second"].read_rows(0, 1), second[np.newaxis])
    file.close()


@given(values=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=64))
@same_folder
def test_any_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path, values: list[int]) -> None:
    bits = [value for value in values if value & 0x7F80 != 0x7F80] or [0]  # without NaN and infinity
    header = json.dumps({"a": entry("BF16", [1, len(bits)], 0, 2 * len(bits))}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + np.array(bits, "<u2").tobytes())
    file = SafetensorsFile(path)
    expected = np.frombuffer(b"".join(struct.pack("<HH", 0, value) for value in bits), "<f4")
    np.testing.assert_array_equal(file.tensors["a"].read()[0].view(np.uint32), expected.view(np.uint32))
    file.close()


@pytest.mark.parametrize(
    ("header", "n_data", "message"),
    [
        ({"a": entry("F32", [2], 0, 4)}, 4, "does not fit its data_offsets"),
        ({"a": entry("F32", [2], 8, 0)}, 8, "does not fit its data_offsets"),
        ({"a": entry("F32", [2], -8, 0)}, 8, "does not fit its data_offsets"),
        ({"a": entry("F32", [2], 0, 8)}, 4, "need"),
        ({"a": entry("F32", [2], 0, 8)}, 12, "need"),
        ({"a": entry("F32", [2], 4, 12)}, 12, "gap"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlaps"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, 8, "overlaps"),
        ({"a": entry("F99", [2], 0, 8)}, 8, "unknown dtype"),
        ({"a": entry("F32", [-2], 0, 8)}, 8, "absurd shape"),
        ({"a": entry("F32", [2.0], 0, 8)}, 8, "absurd shape"),
        ({"a": entry("F32", [True, 2], 0, 8)}, 8, "absurd shape"),
        ({"a": entry("F32", [2**60, 2**60], 0, 8)}, 8, "absurd shape"),
        ({"a": entry("F32", [2**40] * 8, 0, 8)}, 8, "does not fit"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, 4, "absurd shape"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "not described"),
        ({"a": 1}, 0, "not described"),
        (b'{"a": 1, "a": 2}', 0, "stands twice"),
        (b"[]", 0, "does not hold a JSON object"),
        (b"{", 0, "not valid JSON"),
        (b"\xff\xfe", 0, "not UTF-8"),
    ],
)
def test_damaged_header_is_one_clear_error(tmp_path: Path, header: Any, n_data: int, message: str) -> None:
    path = write(tmp_path / "a.safetensors", header, n_data)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [9, 10**8, 10**18, 2**64 - 1])
def test_header_longer_than_the_file_is_refused_before_it_is_allocated(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.safetensors", {}, length=length)
    with pytest.raises(CheckpointError, match="its header claims"):
        SafetensorsFile(path)


@pytest.mark.parametrize("n_bytes", [0, 7])
def test_file_without_a_header_is_refused(tmp_path: Path, n_bytes: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(n_bytes))
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.ones((64, 64), np.float32)}, "F32")
    file = SafetensorsFile(path)
    with path.open("r+b") as shrunk:
        shrunk.truncate(1000)
    with pytest.raises(CheckpointError, match="ended early"):
        file.tensors["a"].read()
    file.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_no_numbers_are_an_error(tmp_path: Path, dtype: Dtype, value: float) -> None:
    weights = np.ones((4, 4), np.float32)
    weights[2, 1] = value
    write_safetensors(tmp_path / "a.safetensors", {"spoilt": weights}, dtype)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="spoilt has NaN or infinite weights"):
        file.tensors["spoilt"].read()
    file.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "I64", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 2**64), max_size=10) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@given(
    header=st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4)
    | json_values
    | st.binary(max_size=64),
    n_data=st.integers(0, 64),
    length=st.none() | st.integers(0, 2**64 - 1),
)
@same_folder
def test_any_file_is_read_or_refused(tmp_path: Path, header: Any, n_data: int, length: int | None) -> None:
    path = write(tmp_path / "a.safetensors", header, n_data, length=length)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    for tensor in file.tensors.values():
        assert tensor.offset + tensor.n_bytes <= path.stat().st_size
    file.close()


@given(st.data())
@same_folder
def test_any_flipped_header_byte_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, "F16")
    content = bytearray(path.read_bytes())
    n_header = 8 + struct.unpack("<Q", content[:8])[0]
    position = data.draw(st.integers(0, n_header - 1))
    content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    for tensor in file.tensors.values():
        tensor.read_bytes(0, tensor.n_bytes)
    file.close()
