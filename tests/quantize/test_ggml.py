import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.quantize.ggml import block_size, quantize_rows, row_size

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
