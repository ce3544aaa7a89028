import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.ggml_rows import from_floats, row_bytes, to_floats
from acestep_gguf.llama.params import CACHE_TYPES

FLOATS = arrays(
    np.float32, st.tuples(st.integers(0, 3), st.just(64)), elements=st.floats(-1e4, 1e4, width=32)
)


@given(FLOATS)
def test_floats_are_rounded_as_numpy_rounds(floats: np.ndarray) -> None:
    assert np.array_equal(to_floats(from_floats(floats, CACHE_TYPES["f32"]), CACHE_TYPES["f32"], 64), floats)
    half = from_floats(floats, CACHE_TYPES["f16"])
    assert np.array_equal(half, floats.astype(np.float16).view(np.uint8))
    assert np.array_equal(to_floats(half, CACHE_TYPES["f16"], 64), floats.astype(np.float16))


@pytest.mark.parametrize(("name", "n_bytes", "error"), [("bf16", 128, 2**-8), ("q8_0", 68, 1 / 127)])
@given(floats=FLOATS)
def test_smaller_types_come_close(name: str, n_bytes: int, error: float, floats: np.ndarray) -> None:
    rows = from_floats(floats, CACHE_TYPES[name])  # type: ignore[index]
    assert rows.shape == (len(floats), n_bytes)
    back = to_floats(rows, CACHE_TYPES[name], 64)  # type: ignore[index]
    largest = np.abs(floats).max(initial=0)
    assert np.abs(back - floats).max(initial=0) <= error * largest + 1e-5  # of scales in float16


def test_rows_fill_whole_blocks() -> None:
    assert row_bytes(CACHE_TYPES["q8_0"], 64) == 68
    with pytest.raises(DecodeError, match="rows of 40 numbers"):
        row_bytes(CACHE_TYPES["q8_0"], 40)
