"""Random weights of the benchmarks: what repeats, what does not, and outlier channels."""

import numpy as np
import pytest

pytest.importorskip("gguf")

from scripts.synthetic.checkpoint import OUTLIER_DIVISOR, OUTLIER_FACTOR, PATTERN_ROWS, Rows

LAYER = "vision_tower.vision_model.encoder.layers.3."


def tensor(rows: Rows, name: str, dims: tuple[int, ...], seed: int = 0) -> np.ndarray:
    bits = np.concatenate([block.ravel() for block in rows.blocks(name, dims, seed)])
    values: np.ndarray = (bits.astype(np.uint32) << 16).view(np.float32).reshape(dims)
    return values


def test_rows_repeat_unless_they_are_to_be_independent() -> None:
    dims = (3 * PATTERN_ROWS, 256)
    repeated = tensor(Rows(), "model.norm_proj.weight", dims)
    assert np.array_equal(repeated[:PATTERN_ROWS], repeated[PATTERN_ROWS : 2 * PATTERN_ROWS])
    independent = tensor(Rows(independent=True), "model.norm_proj.weight", dims)
    assert len(np.unique(independent, axis=0)) == len(independent)
    assert np.array_equal(independent[:PATTERN_ROWS], repeated[:PATTERN_ROWS])
    assert independent.std() == pytest.approx(1 / 16, rel=0.02)


@pytest.mark.parametrize("reader", ["self_attn.q_proj", "self_attn.v_proj", "mlp.fc1"])
def test_outlier_channels_are_larger_in_norms_and_smaller_in_their_readers(reader: str) -> None:
    channels = np.array([3, 40])
    plain, outliers = Rows(), Rows(outliers=channels)
    norm = tensor(outliers, f"{LAYER}layer_norm1.weight", (64,))
    assert set(np.flatnonzero(norm != 1)) == set(channels)
    assert np.all(norm[channels] == OUTLIER_FACTOR)
    before, after = (tensor(rows, f"{LAYER}{reader}.weight", (80, 64)) for rows in (plain, outliers))
    np.testing.assert_allclose(after[:, channels] * OUTLIER_DIVISOR, before[:, channels], rtol=0.02)
    others = np.setdiff1d(np.arange(64), channels)
    assert np.array_equal(after[:, others], before[:, others])


@pytest.mark.parametrize(
    "name", [f"{LAYER}self_attn.out_proj.weight", f"{LAYER}mlp.fc2.weight", "lm_head.weight"]
)
def test_other_matrices_have_no_outliers(name: str) -> None:
    rows = Rows(outliers=np.array([3]))
    assert np.array_equal(tensor(rows, name, (80, 64)), tensor(Rows(), name, (80, 64)))
