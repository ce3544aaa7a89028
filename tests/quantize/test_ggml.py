import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quantize.ggml import (
    NEED_IMPORTANCE,
    ON_A_GRID,
    are_sound,
    block_size,
    dequantize_rows,
    quantize_rows,
    row_size,
)
from acestep_gguf.quantize.gguf_source import READABLE_TYPES
from acestep_gguf.quantize.steering import STEERABLE_TYPES

# Type, and how far a dequantized weight may be from the original, relative to the largest.
TYPES = {
    QType.F32: 0.0,
    QType.F16: 1e-3,
    QType.BF16: 4e-3,
    QType.Q8_0: 5e-3,
    QType.Q6_K: 0.04,
    QType.Q5_K: 0.06,
    QType.Q4_K: 0.12,
    QType.Q5_0: 0.07,
    QType.Q5_1: 0.07,
}


@pytest.mark.parametrize("qtype", TYPES, ids=lambda qtype: qtype.name)
def test_blocks_are_what_gguf_py_reads_back(qtype: QType) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
    blocks = quantize_rows(rows, qtype)
    assert blocks is not None
    assert blocks.shape == (7, row_size(qtype, 512))
    error = np.abs(dequantize(blocks.view(np.uint8), qtype).reshape(rows.shape) - rows).max()
    assert error <= TYPES[qtype] * np.abs(rows).max()


@given(cut=st.integers(1, 15), qtype=st.sampled_from(list(TYPES)))
def test_cutting_a_tensor_into_chunks_changes_nothing(cut: int, qtype: QType) -> None:
    rows = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    whole, first, second = (quantize_rows(part, qtype) for part in (rows, rows[:cut], rows[cut:]))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))


@pytest.mark.parametrize(
    "qtype", [QType.F16, QType.Q8_0, QType.Q4_K, QType.Q6_K], ids=lambda qtype: qtype.name
)
def test_weights_that_overflow_float16_are_noticed(qtype: QType) -> None:
    assert quantize_rows(np.full((2, 256), 1e12, np.float32), qtype) is None
    assert quantize_rows(np.full((2, 256), 1e12, np.float32), QType.BF16) is not None


def test_rows_that_do_not_fit_the_blocks_are_refused() -> None:
    assert block_size(QType.Q4_K) == 256
    rows = np.zeros((4, 384), np.float32)
    for bad in (rows, np.zeros((4, 256)), np.zeros((8, 512), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="cannot quantize"):
            quantize_rows(bad, QType.Q4_K)  # type: ignore[arg-type]


@pytest.mark.parametrize("qtype", NEED_IMPORTANCE, ids=lambda qtype: qtype.name)
def test_what_ggml_would_die_of_is_refused(qtype: QType) -> None:
    with pytest.raises(ValueError, match="without importance"):
        quantize_rows(np.zeros((1, 256), np.float32), qtype)


@pytest.mark.parametrize("qtype", ON_A_GRID, ids=lambda qtype: qtype.name)
def test_what_leaves_no_point_on_the_grid_is_noticed(qtype: QType) -> None:
    """ggml would end the process."""
    rows, even = np.ones((2, 256), np.float32), np.ones(256, np.float32)
    for large, importance in ((rows * np.float32(1e25), even), (rows, even * np.float32(1e38))):
        assert quantize_rows(large, qtype, importance) is None


@pytest.mark.parametrize("qtype", STEERABLE_TYPES, ids=lambda qtype: qtype.name)
def test_dequantized_rows_are_gguf_pys_to_the_bit(qtype: QType) -> None:
    rows = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    blocks = quantize_rows(rows, qtype, np.ones(512, np.float32) if qtype in NEED_IMPORTANCE else None)
    assert blocks is not None
    read = dequantize_rows(blocks, qtype)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, dequantize(blocks, qtype).reshape(rows.shape))


@pytest.mark.parametrize("qtype", READABLE_TYPES, ids=lambda qtype: qtype.name)
def test_every_type_that_a_source_may_have_can_be_read(qtype: QType) -> None:
    rows = dequantize_rows(np.zeros((2, row_size(qtype, 512)), np.uint8), qtype)
    assert rows.shape == (2, 512)


@pytest.mark.parametrize(
    "qtype", [QType.Q4_K, QType.Q6_K, QType.Q4_0, QType.IQ4_XS], ids=lambda qtype: qtype.name
)
def test_importance_lowers_the_errors_that_it_weighs(qtype: QType) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((64, 512)).astype(np.float32)
    importance = (rng.random(512) ** 8).astype(np.float32)

    def weighed_error(weights: np.ndarray | None) -> float:
        blocks = quantize_rows(rows, qtype, weights)
        assert blocks is not None
        return float(((dequantize_rows(blocks, qtype) - rows) ** 2 @ importance).sum())

    assert weighed_error(importance) < 0.95 * weighed_error(None)


def test_importance_of_another_length_or_type_is_refused() -> None:
    rows = np.zeros((4, 256), np.float32)
    for bad in (
        np.ones(255, np.float32),
        np.ones(256),
        np.ones((1, 256), np.float32),
        np.ones(512, np.float32)[::2],
    ):
        with pytest.raises(ValueError, match="cannot weigh rows of 256"):
            quantize_rows(rows, QType.Q4_K, bad)  # type: ignore[arg-type]


def test_blocks_that_are_no_whole_rows_are_refused() -> None:
    for bad in (
        np.zeros((2, 145), np.uint8),
        np.zeros((2, 144), np.int8),
        np.zeros((2, 288), np.uint8)[:, ::2],
    ):
        with pytest.raises(ValueError, match="as Q4_K"):
            dequantize_rows(bad, QType.Q4_K)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "qtype", [QType.F32, QType.F16, QType.BF16, QType.Q8_0, QType.Q4_K], ids=lambda qtype: qtype.name
)
def test_nan_and_infinity_are_not_sound(qtype: QType) -> None:
    assert are_sound(np.zeros((1, row_size(qtype, 256)), np.uint8), qtype)
    assert not are_sound(np.full((1, row_size(qtype, 256)), 0xFF, np.uint8), qtype)
