"""FP8 with block scales: against the bits of OCP's e4m3, code by code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.fp8 import E4M3FN, Fp8
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.packed_tensors import by_dtype, open_stored
from tests.support.quantized_formats import fp8

CONFIG: dict[str, Any] = {"weight_block_size": [16, 32], "activation_scheme": "dynamic", "fmt": "e4m3"}


def e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    value = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7)
    return -value if sign else value


def random_tensors(n_out: int = 40, n_in: int = 72) -> dict[str, NDArray[Any]]:
    """Sizes that the blocks do not divide, and every code but NaN's."""
    rng = np.random.default_rng(0)
    codes = rng.choice([code for code in range(256) if code & 0x7F != 0x7F], (n_out, n_in)).astype(np.uint8)
    scales = rng.standard_normal((-(-n_out // 16), -(-n_in // 32))).astype(np.float32)
    return {"weight": codes, "weight_scale_inv": scales}


def read(path: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any] = CONFIG) -> PackedWeight:
    named = {f"q_proj.{name}": array for name, array in tensors.items()}
    stored = open_stored(path, by_dtype(named, **{"q_proj.weight": "F8_E4M3"}))
    (weight,) = Fp8.from_settings(config).weights(stored)
    return weight


def test_every_code_means_what_the_format_says() -> None:
    np.testing.assert_array_equal(E4M3FN, [e4m3(code) for code in range(256)])
    assert np.nanmax(E4M3FN) == 448


def test_every_block_has_its_scale(tmp_path: Path) -> None:
    tensors = random_tensors()
    expected = np.array(
        [
            [
                np.float32(e4m3(int(code))) * tensors["weight_scale_inv"][row // 16, column // 32]
                for column, code in enumerate(codes)
            ]
            for row, codes in enumerate(tensors["weight"])
        ]
    )
    np.testing.assert_array_equal(read(tmp_path / "a.safetensors", tensors).read(), expected)


@given(rows=st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda rows: rows[0] < rows[1]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_are_those_of_the_whole(tmp_path: Path, rows: tuple[int, int]) -> None:
    weight = read(tmp_path / "a.safetensors", random_tensors())
    np.testing.assert_array_equal(weight.read_rows(*rows), weight.read()[slice(*rows)])


def test_a_matrix_comes_back_up_to_its_rounding(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((130, 257)).astype(np.float32)
    config = CONFIG | {"weight_block_size": [128, 128]}
    read_back = read(tmp_path / "a.safetensors", fp8(matrix), config).read()
    np.testing.assert_allclose(read_back, matrix, rtol=2**-4, atol=1e-4)


def test_bfloat16_scales_are_read(tmp_path: Path) -> None:
    tensors = {"q_proj.weight": ("F8_E4M3", np.full((16, 32), 0x38, np.uint8))}  # 1.0
    scales = {"q_proj.weight_scale_inv": ("BF16", np.full((1, 1), 0.5, np.float32))}
    (weight,) = Fp8.from_settings(CONFIG).weights(open_stored(tmp_path / "a.safetensors", tensors | scales))
    np.testing.assert_array_equal(weight.read(), np.full((16, 32), 0.5))


def test_one_scale_for_a_matrix_is_named(tmp_path: Path) -> None:
    tensors = {"weight": random_tensors()["weight"], "weight_scale": np.ones(1, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"FP8 with q_proj\.weight_scale, one scale for a matrix"):
        read(tmp_path / "a.safetensors", tensors)


def test_nan_codes_are_an_error(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["weight"][3, 5] = 0xFF
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has NaN"):
        read(tmp_path / "a.safetensors", tensors).read()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("weight_scale_inv", np.ones((3, 2), np.float32), r"has shape \[3, 2\], not \[3, 3\]"),
        ("weight_scale_inv", np.ones((3, 3), np.uint8), "weight_scale_inv is U8, not"),
        ("weight_scale_inv", None, "weight_scale_inv is missing"),
        ("weight", np.zeros(72, np.uint8), "not a matrix"),
        ("weight", np.zeros((0, 72), np.uint8), "not a matrix"),
    ],
)
def test_what_does_not_fit_together_is_an_error(tmp_path: Path, name: str, array: Any, message: str) -> None:
    tensors = random_tensors() | {name: array}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "a.safetensors", {key: value for key, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmt": "e5m2"}, "FP8 with fmt 'e5m2' is not read"),
        ({"scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0'"),
        ({"activation_scheme": "static"}, "activation_scheme 'static'"),
        ({"weight_block_size": None}, "without weight_block_size"),
    ],
)
def test_other_kinds_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Fp8.from_settings(CONFIG | change)


@pytest.mark.parametrize("value", [[128], [0, 128], [128, 2**40], ["128", "128"], 128, [1.5, 2]])
def test_a_damaged_block_size_is_an_error(value: object) -> None:
    with pytest.raises(CheckpointError, match="weight_block_size"):
        Fp8.from_settings(CONFIG | {"weight_block_size": value})
