import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.convert.tower.position_embedding import cubic_weights, interpolate_positions

# What torch.nn.functional.interpolate(mode="bicubic", align_corners=False) made of these tables.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "torch_bicubic.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"to {case['n_side']}")
def test_same_as_torch(case: dict[str, Any]) -> None:
    table = np.array(case["table"], np.float32)
    resized = interpolate_positions(table, case["n_side"])
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, case["expected"], atol=2e-6)


def test_cls_keeps_its_embedding() -> None:
    table = np.arange(10 * 4, dtype=np.float32).reshape(10, 4)
    np.testing.assert_array_equal(interpolate_positions(table, 7)[0], table[0])


def test_table_without_cls() -> None:
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    np.testing.assert_array_equal(interpolate_positions(table[1:], 7), interpolate_positions(table, 7)[1:])


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 40))
def test_weights_keep_a_constant(n_in: int, n_out: int) -> None:
    np.testing.assert_allclose(cubic_weights(n_in, n_out).sum(axis=1), 1, atol=1e-12)


@given(side=st.integers(1, 20))
def test_weights_to_the_same_size_change_nothing(side: int) -> None:
    np.testing.assert_allclose(cubic_weights(side, side), np.eye(side), atol=1e-12)
