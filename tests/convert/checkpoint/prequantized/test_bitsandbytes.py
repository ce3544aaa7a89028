"""bitsandbytes: against its serializer's layout, number by number; tests/parity asks bitsandbytes itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.bitsandbytes import BitsAndBytes
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.packed_tensors import Stored, by_dtype, eight_bit, four_bit, open_stored

NF4_STATE = ".quant_state.bitsandbytes__nf4"


def matrix(n_out: int, n_in: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((n_out, n_in)).astype(np.float32)


def read(path: Path, tensors: dict[str, Stored]) -> PackedWeight:
    stored = open_stored(path, {f"q_proj.weight{suffix}": one for suffix, one in tensors.items()})
    (weight,) = BitsAndBytes.from_settings({}).weights(stored)
    return weight


def dequantized(tensors: dict[str, Stored], n_out: int, n_in: int) -> NDArray[np.float32]:
    """quant_map[code] * absmax of each block of 64, the first code of a byte in its high bits."""
    packed, quant_map, absmax = (tensors[suffix][1] for suffix in ("", ".quant_map", ".absmax"))
    if ".nested_absmax" in tensors:
        (state,) = (
            json.loads(array.tobytes()) for name, (_, array) in tensors.items() if "quant_state" in name
        )
        codes, absmax = absmax, np.empty(len(absmax), np.float32)
        for i, code in enumerate(codes):
            scale = tensors[".nested_quant_map"][1][code] * tensors[".nested_absmax"][1][i // 256]
            absmax[i] = scale + np.float32(state["nested_offset"])
    weights = np.empty(n_out * n_in, np.float32)
    for i in range(n_out * n_in):
        code = packed.ravel()[i // 2] >> 4 if i % 2 == 0 else packed.ravel()[i // 2] & 15
        weights[i] = quant_map[code] * absmax[i // 64]
    return weights.reshape(n_out, n_in)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(8, 64), (9, 33), (300, 65)])
def test_every_code_is_read_exactly(
    tmp_path: Path, quant_type: str, nested: bool, shape: tuple[int, int]
) -> None:
    tensors = four_bit(matrix(*shape), quant_type, nested=nested)
    weight = read(tmp_path / "a.safetensors", tensors)
    assert (weight.name, weight.shape) == ("q_proj.weight", shape)
    np.testing.assert_array_equal(weight.read(), dequantized(tensors, *shape))


@given(rows=st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda rows: rows[0] < rows[1]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("nested", [False, True])
def test_any_rows_are_those_of_the_whole(tmp_path: Path, nested: bool, rows: tuple[int, int]) -> None:
    weight = read(tmp_path / "a.safetensors", four_bit(matrix(40, 51), "nf4", nested=nested))
    np.testing.assert_array_equal(weight.read_rows(*rows), weight.read()[slice(*rows)])


@pytest.mark.parametrize(("quant_type", "tolerance"), [("nf4", 0.1), ("fp4", 0.13)])
def test_a_matrix_comes_back_up_to_its_rounding(tmp_path: Path, quant_type: str, tolerance: float) -> None:
    original = matrix(64, 64)
    error = read(tmp_path / "a.safetensors", four_bit(original, quant_type, nested=True)).read() - original
    assert np.sqrt(np.square(error).mean()) < tolerance


def test_codes_may_be_stored_as_any_dtype(tmp_path: Path) -> None:
    tensors = four_bit(matrix(8, 64), "nf4", nested=False)
    expected = read(tmp_path / "a.safetensors", tensors).read()
    tensors[""] = ("F64", tensors[""][1].reshape(-1).view(np.float64))
    np.testing.assert_array_equal(read(tmp_path / "b.safetensors", tensors).read(), expected)


def state(**changes: object) -> Stored:
    values = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 64]} | changes
    return "U8", np.frombuffer(json.dumps(values).encode(), np.uint8)


@pytest.mark.parametrize(
    ("suffix", "stored", "message"),
    [
        (NF4_STATE, state(shape=[8, 65]), "has fewer bytes than"),
        (NF4_STATE, state(shape=[2**31, 2**31]), "has fewer bytes than"),
        (NF4_STATE, state(shape=[8, -64]), "is damaged"),
        (NF4_STATE, state(shape=[8, 0]), "is damaged"),
        (NF4_STATE, state(shape=[512]), "is damaged"),
        (NF4_STATE, state(blocksize=0), "is damaged"),
        (NF4_STATE, state(blocksize=32), r"absmax has shape \[8\], not \[16\]"),
        (NF4_STATE, state(nested_blocksize=256), "absmax is F32, not U8"),
        (NF4_STATE, ("U8", np.frombuffer(b"{", np.uint8)), "not valid JSON"),
        (NF4_STATE, ("U8", np.frombuffer(b"\xff", np.uint8)), "is damaged"),
        (NF4_STATE, ("U8", np.zeros(5000, np.uint8)), "has 5000 bytes"),
        (".absmax", ("F32", np.ones(7, np.float32)), "absmax has shape"),
        (".quant_map", ("F32", np.ones(15, np.float32)), "quant_map has shape"),
        (".quant_map", None, "quant_map is missing"),
        ("", None, "has fewer bytes than"),
    ],
)
def test_what_does_not_fit_together_is_an_error(
    tmp_path: Path, suffix: str, stored: Stored | None, message: str
) -> None:
    tensors: dict[str, Stored | None] = {**four_bit(matrix(8, 64), "nf4", nested=False), suffix: stored}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.safetensors", {name: one for name, one in tensors.items() if one is not None})


def test_another_type_is_named(tmp_path: Path) -> None:
    tensors = four_bit(matrix(8, 64), "nf4", nested=False)
    tensors[".quant_state.bitsandbytes__af4"] = state(quant_type="af4")
    del tensors[NF4_STATE]
    with pytest.raises(UnsupportedModelError, match="is af4, not nf4 or fp4"):
        read(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize("suffix", [".absmax", ".quant_map"])
def test_scales_that_are_no_numbers_are_an_error(tmp_path: Path, suffix: str) -> None:
    tensors = four_bit(matrix(8, 64), "nf4", nested=False)
    values = tensors[suffix][1].copy()
    values[:] = np.inf
    tensors[suffix] = ("F32", values)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        read(tmp_path / "a.safetensors", tensors).read()


def read_eight_bit(path: Path, tensors: dict[str, Stored]) -> PackedWeight:
    stored = open_stored(path, {f"q_proj.{suffix}": one for suffix, one in tensors.items()})
    (weight,) = BitsAndBytes.from_settings({"load_in_8bit": True}).weights(stored)
    return weight


def test_eight_bits_have_a_scale_for_each_row(tmp_path: Path) -> None:
    original = matrix(9, 33)
    tensors = eight_bit(original)
    weight = read_eight_bit(tmp_path / "a.safetensors", tensors)
    numbers, scb = tensors["weight"][1], tensors["SCB"][1]
    expected = [
        [float(number) * float(scale) / 127 for number in row]
        for row, scale in zip(numbers, scb, strict=True)
    ]
    np.testing.assert_allclose(weight.read(), expected, rtol=3e-7)
    np.testing.assert_allclose(weight.read(), original, atol=float(scb.max()) / 250)
    np.testing.assert_array_equal(weight.read_rows(2, 7), weight.read()[2:7])
    assert (weight.name, weight.shape) == ("q_proj.weight", (9, 33))


@pytest.mark.parametrize(
    ("suffix", "stored", "error", "message"),
    [
        ("SCB", ("F32", np.ones(8, np.float32)), CheckpointError, "SCB has shape"),
        ("SCB", ("F16", np.ones(9, np.float16)), CheckpointError, "SCB is F16, not F32"),
        ("weight", ("U8", np.zeros((9, 33), np.uint8)), CheckpointError, "weight is U8, not I8"),
        ("weight_format", ("U8", np.array(2, np.uint8)), UnsupportedModelError, "not stored row by row"),
        ("weight_format", ("U8", np.zeros(2, np.uint8)), CheckpointError, "weight_format has shape"),
    ],
)
def test_what_does_not_fit_in_eight_bits_is_an_error(
    tmp_path: Path, suffix: str, stored: Stored, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_eight_bit(tmp_path / "a.safetensors", eight_bit(matrix(9, 33)) | {suffix: stored})


def test_an_old_file_without_a_layout_is_row_by_row(tmp_path: Path) -> None:
    tensors = eight_bit(matrix(9, 33))
    expected = read_eight_bit(tmp_path / "a.safetensors", tensors).read()
    del tensors["weight_format"]
    np.testing.assert_array_equal(read_eight_bit(tmp_path / "b.safetensors", tensors).read(), expected)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit nf4"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes 8-bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": ["\n"]}, "bitsandbytes"),
        ({}, "bitsandbytes"),
    ],
)
def test_its_name(config: dict[str, Any], label: str) -> None:
    assert BitsAndBytes.from_settings(config).label() == label


def test_tensors_of_another_format_are_left_alone(tmp_path: Path) -> None:
    stored = open_stored(tmp_path / "a.safetensors", by_dtype({"q_proj.weight": matrix(2, 2)}))
    assert list(BitsAndBytes.from_settings({}).weights(stored)) == []
