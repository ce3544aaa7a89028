from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from acestep_gguf.bundle.schema import Bundle
from scripts.bench.smollm2_divergence import write_reference


def test_the_reference_lies_off_the_grid_by_half_a_step_at_most(tiny_bundle: Path, tmp_path: Path) -> None:
    source = tiny_bundle / Bundle.read(tiny_bundle).decoder("Q8_0").file
    write_reference(source, tmp_path / "one.gguf")
    write_reference(source, tmp_path / "other.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()

    n_quantized = 0
    made = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "one.gguf").tensors}
    for old in GGUFReader(source).tensors:
        new = made.pop(old.name)
        assert new.tensor_type.name == "F32"
        noise = np.asarray(new.data).ravel() - dequantize(old.data, old.tensor_type).ravel()
        if old.tensor_type.name == "F32":
            assert not noise.any()
            continue
        n_quantized += 1
        steps = np.asarray(old.data).reshape(-1, 34)[:, :2].copy().view(np.float16).astype(np.float32)
        shares = noise.reshape(-1, 32) / steps
        assert 0.49 < np.abs(shares).max() < 0.501
        assert abs(shares.mean()) < 0.01
    assert n_quantized > 10
    assert not made
