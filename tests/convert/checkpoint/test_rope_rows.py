from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.rope_rows import NeighbouringPairs


@dataclass(frozen=True)
class Rows:
    """A weight whose rows tell their numbers."""

    name: str
    shape: tuple[int, int]
    stamp: str = ""

    def check(self) -> None:
        pass

    def read(self) -> NDArray[np.float32]:
        return self.read_rows(0, self.shape[0])

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        assert 0 <= start < stop <= self.shape[0]
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], self.shape[1], axis=1)


@pytest.mark.parametrize(("n_heads", "head_size"), [(1, 2), (3, 8), (4, 6)])
def test_rows_are_those_of_llama_cpps_converter(n_heads: int, head_size: int) -> None:
    weight = Rows("q_proj", (n_heads * head_size, 3))
    # LlamaModel.permute of llama.cpp's conversion package, in numpy.
    expected = weight.read().reshape(n_heads, 2, head_size // 2, 3).swapaxes(1, 2).reshape(weight.shape)
    pairs = NeighbouringPairs(weight, head_size)
    assert pairs.shape == weight.shape
    np.testing.assert_array_equal(pairs.read(), expected)
    for start in range(weight.shape[0]):
        for stop in range(start + 1, weight.shape[0] + 1):
            np.testing.assert_array_equal(pairs.read_rows(start, stop), expected[start:stop])
