"""AWQ: against a word by word reading of AutoAWQ's layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.awq import Awq
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.packed_tensors import by_dtype, open_stored
from tests.support.quantized_formats import awq

CONFIG: dict[str, Any] = {"bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def random_tensors(n_out: int, n_in: int, group_size: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Any words at all: every pattern of bits is a matrix."""
    rng = np.random.default_rng(seed)
    n_groups = n_in // group_size
    return {
        "qweight": rng.integers(-(2**31), 2**31, (n_in, n_out // 8)).astype(np.int32),
        "qzeros": rng.integers(-(2**31), 2**31, (n_groups, n_out // 8)).astype(np.int32),
        "scales": rng.standard_normal((n_groups, n_out)).astype(np.float16),
    }


def dequantized(tensors: dict[str, NDArray[Any]], group_size: int) -> NDArray[np.float64]:
    """(number - zero) * scale, one number at a time; column 8 c + [0, 2, 4, 6, 1, 3, 5, 7][i] is bit 4 i."""
    n_in, n_words = tensors["qweight"].shape
    weights = np.empty((8 * n_words, n_in))
    for row in range(n_in):
        for word in range(n_words):
            for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                number = (int(tensors["qweight"][row, word]) & 0xFFFFFFFF) >> 4 * place & 15
                zero = (int(tensors["qzeros"][row // group_size, word]) & 0xFFFFFFFF) >> 4 * place & 15
                out = 8 * word + column
                weights[out, row] = (number - zero) * float(tensors["scales"][row // group_size, out])
    return weights


def read(path: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any] = CONFIG) -> PackedWeight:
    stored = open_stored(path, by_dtype({f"q_proj.{name}": array for name, array in tensors.items()}))
    (weight,) = Awq.from_settings(config).weights(stored)
    return weight


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_every_word_is_read_exactly(tmp_path: Path, group_size: int) -> None:
    n_in = 64
    tensors = random_tensors(40, n_in, n_in if group_size == -1 else group_size)
    weight = read(tmp_path / "a.safetensors", tensors, CONFIG | {"group_size": group_size})
    assert (weight.name, weight.shape) == ("q_proj.weight", (40, n_in))
    expected = dequantized(tensors, n_in if group_size == -1 else group_size)
    np.testing.assert_array_equal(weight.read(), expected)
    assert weight.read().flags.c_contiguous


@given(rows=st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda rows: rows[0] < rows[1]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_are_those_of_the_whole(tmp_path: Path, rows: tuple[int, int]) -> None:
    weight = read(tmp_path / "a.safetensors", random_tensors(40, 64, 32))
    np.testing.assert_array_equal(weight.read_rows(*rows), weight.read()[slice(*rows)])


def test_a_matrix_comes_back_up_to_its_rounding(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    tensors = awq(matrix, 32)
    scales = np.repeat(tensors["scales"].T.astype(np.float32), 32, axis=1)
    error = np.abs(read(tmp_path / "a.safetensors", tensors).read() - matrix)
    assert (error <= 0.51 * scales + 1e-3).mean() > 0.99  # the zero point is rounded, too


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("qzeros", np.zeros((3, 5), np.int32), r"qzeros has shape \[3, 5\], not \[2, 5\]"),
        ("scales", np.ones((2, 39), np.float16), r"scales has shape \[2, 39\], not \[2, 40\]"),
        ("scales", np.ones((2, 40), np.int32), "scales is I32, not"),
        ("qweight", np.zeros((64, 5), np.int8), "qweight is I8, not I32"),
        ("qweight", np.zeros(64, np.int32), "not a matrix"),
        ("qweight", np.zeros((0, 5), np.int32), "not a matrix"),
        ("qzeros", None, "qzeros is missing"),
    ],
)
def test_what_does_not_fit_together_is_an_error(tmp_path: Path, name: str, array: Any, message: str) -> None:
    tensors = random_tensors(40, 64, 32) | {name: array}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.safetensors", {key: value for key, value in tensors.items() if value is not None})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    tensors = random_tensors(40, 64, 32)
    tensors["scales"][1, 7] = value
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        read(tmp_path / "a.safetensors", tensors).read_rows(0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "AWQ with bits 3 is not read, only 4"),
        ({"bits": True}, "bits True"),
        ({"bits": [4]}, "bits"),
        ({"version": "gemv"}, "version 'gemv' is not read, only gemm"),
        ({"version": "gemv_fast"}, "version 'gemv_fast'"),
        ({"zero_point": False}, "zero_point False"),
        ({"backend": "llm-awq"}, "backend 'llm-awq'"),
    ],
)
def test_other_kinds_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Awq.from_settings(CONFIG | change)


@pytest.mark.parametrize("group_size", [0, -2, 2**40, 32.0, "32", None, True])
def test_a_damaged_group_size_is_an_error(group_size: object) -> None:
    with pytest.raises(CheckpointError, match="group_size"):
        Awq.from_settings(CONFIG | {"group_size": group_size})


def test_the_words_of_autoawq_itself_are_known() -> None:
    assert Awq.from_settings({"w_bit": 4, "q_group_size": 64, "version": "GEMM"}).group_size == 64
    with pytest.raises(CheckpointError, match="has no bits"):
        Awq.from_settings({})
