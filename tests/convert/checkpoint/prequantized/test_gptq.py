"""GPTQ: against a number by number reading of AutoGPTQ's layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.gptq import Gptq
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.packed_tensors import by_dtype, open_stored
from tests.support.quantized_formats import gptq, pack_columns

N_OUT, N_IN, GROUP_SIZE = 24, 64, 16
CONFIG: dict[str, Any] = {"bits": 4, "group_size": GROUP_SIZE, "desc_act": True, "sym": False}


def random_tensors(bits: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Any numbers and groups at all, with zero points from 1 on: v1 cannot store a 0 alone."""
    rng = np.random.default_rng(seed)
    n_groups = N_IN // GROUP_SIZE
    return {
        "qweight": rng.integers(-(2**31), 2**31, (N_IN * bits // 32, N_OUT)).astype(np.int32),
        "qzeros": pack_columns(rng.integers(1, 2**bits - 1, (n_groups, N_OUT)), bits),
        "scales": rng.standard_normal((n_groups, N_OUT)).astype(np.float16),
        "g_idx": rng.integers(0, n_groups, N_IN).astype(np.int32),
    }


def dequantized(tensors: dict[str, NDArray[Any]], bits: int, subtracted: int) -> NDArray[np.float64]:
    """(number - (zero + subtracted)) * scale of the column's group."""

    def number(words: NDArray[Any], row: int, column: int, *, packed_rows: bool) -> int:
        along = row if packed_rows else column
        place, shift = divmod(along, 32 // bits)
        word = words[place, column] if packed_rows else words[row, place]
        return int((int(word) & 0xFFFFFFFF) >> bits * shift & (2**bits - 1))

    weights = np.empty((N_OUT, N_IN))
    for out in range(N_OUT):
        for column in range(N_IN):
            group = int(tensors["g_idx"][column]) if "g_idx" in tensors else column // GROUP_SIZE
            zero = number(tensors["qzeros"], group, out, packed_rows=False) + subtracted
            scale = float(tensors["scales"][group, out])
            weights[out, column] = (number(tensors["qweight"], column, out, packed_rows=True) - zero) * scale
    return weights


def read(path: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any] = CONFIG) -> PackedWeight:
    stored = open_stored(path, by_dtype({f"q_proj.{name}": array for name, array in tensors.items()}))
    (weight,) = Gptq.from_settings(config).weights(stored)
    return weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("version", "subtracted"), [(None, 1), ("gptq", 1), ("gptq_v2", 0)])
def test_every_number_is_read_exactly(
    tmp_path: Path, bits: int, version: str | None, subtracted: int
) -> None:
    tensors = random_tensors(bits)
    config = CONFIG | {"bits": bits} | ({"checkpoint_format": version} if version else {})
    weight = read(tmp_path / "a.safetensors", tensors, config)
    assert (weight.name, weight.shape) == ("q_proj.weight", (N_OUT, N_IN))
    np.testing.assert_array_equal(weight.read(), dequantized(tensors, bits, subtracted))
    assert weight.read().flags.c_contiguous


@pytest.mark.parametrize("bits", [4, 8])
def test_without_g_idx_groups_follow_one_another(tmp_path: Path, bits: int) -> None:
    tensors = random_tensors(bits)
    del tensors["g_idx"]
    weight = read(tmp_path / "a.safetensors", tensors, CONFIG | {"bits": bits})
    np.testing.assert_array_equal(weight.read(), dequantized(tensors, bits, 1))


def test_one_group_of_all_columns(tmp_path: Path) -> None:
    tensors = {name: array[:1] for name, array in random_tensors(4).items() if name in ("qzeros", "scales")}
    tensors |= {"qweight": random_tensors(4)["qweight"], "g_idx": np.zeros(N_IN, np.int32)}
    weight = read(tmp_path / "a.safetensors", tensors, CONFIG | {"group_size": -1})
    np.testing.assert_array_equal(weight.read(), dequantized(tensors, 4, 1))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_of_zero_borrowed_from_its_neighbour_in_v1(tmp_path: Path, bits: int) -> None:
    """GPTQModel subtracts ones from the packed words, and adds them again."""
    rng = np.random.default_rng(1)
    zeros = rng.integers(0, 2**bits, (N_IN // GROUP_SIZE, N_OUT))
    zeros[:, ::5] = 0
    packed = pack_columns(zeros, bits).view(np.uint32)
    ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    tensors = random_tensors(bits) | {"qzeros": (packed - ones).view(np.int32)}
    weight = read(tmp_path / "a.safetensors", tensors, CONFIG | {"bits": bits})
    expected = dequantized(tensors | {"qzeros": packed.view(np.int32)}, bits, 0)
    np.testing.assert_array_equal(weight.read(), expected)


@given(rows=st.tuples(st.integers(0, N_OUT), st.integers(0, N_OUT)).filter(lambda rows: rows[0] < rows[1]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("bits", [4, 8])
def test_any_rows_are_those_of_the_whole(tmp_path: Path, bits: int, rows: tuple[int, int]) -> None:
    weight = read(tmp_path / "a.safetensors", random_tensors(bits), CONFIG | {"bits": bits})
    np.testing.assert_array_equal(weight.read_rows(*rows), weight.read()[slice(*rows)])


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.09), (8, 0.006)])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_a_matrix_comes_back_up_to_its_rounding(
    tmp_path: Path, bits: int, tolerance: float, is_shuffled: bool
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((N_OUT, N_IN)).astype(np.float32)
    order = rng.permutation(N_IN) if is_shuffled else None
    tensors = gptq(matrix, bits, GROUP_SIZE, column_order=order)
    error = read(tmp_path / "a.safetensors", tensors, CONFIG | {"bits": bits}).read() - matrix
    assert np.sqrt(np.square(error).mean()) < tolerance


@pytest.mark.parametrize("group", [-1, N_IN // GROUP_SIZE, 2**31 - 1])
def test_a_group_that_is_not_there_is_an_error(tmp_path: Path, group: int) -> None:
    tensors = random_tensors(4)
    tensors["g_idx"][5] = group
    with pytest.raises(CheckpointError, match="g_idx names groups that"):
        read(tmp_path / "a.safetensors", tensors).read()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("qzeros", np.zeros((4, 2), np.int32), "qzeros has shape"),
        ("scales", np.ones((3, N_OUT), np.float16), "scales has shape"),
        ("g_idx", np.zeros(N_IN - 1, np.int32), "g_idx has shape"),
        ("g_idx", np.zeros(N_IN, np.uint8), "g_idx is U8, not I32"),
        ("qweight", np.zeros((0, N_OUT), np.int32), "not a matrix"),
        ("scales", None, "scales is missing"),
    ],
)
def test_what_does_not_fit_together_is_an_error(tmp_path: Path, name: str, array: Any, message: str) -> None:
    tensors = random_tensors(4) | {name: array}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.safetensors", {key: value for key, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "GPTQ with bits 3 is not read, only 4 or 8"),
        ({"bits": 2}, "bits 2"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read, only gptq or gptq_v2"),
        ({"is_marlin_format": True}, "is_marlin_format True"),
        ({"pack_dtype": "int64"}, "pack_dtype 'int64'"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, "settings for single modules"),
        ({"dynamic": []}, None),
        ({"dynamic": {"-:.*down.*": {}}}, None),
        ({"dynamic": [1]}, "settings for single modules"),
    ],
)
def test_other_kinds_are_named(change: dict[str, Any], message: str | None) -> None:
    if message is None:
        Gptq.from_settings(CONFIG | change)
        return
    with pytest.raises(UnsupportedModelError, match=message):
        Gptq.from_settings(CONFIG | change)
