"""Llama 3.1's divisors; tests/golden and tests/parity compare what llama.cpp makes of them."""

from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.config import TextConfig
from acestep_gguf.convert.checkpoint.rope_factors import ROPE_FACTORS, RopeFactors
from acestep_gguf.convert.checkpoint.rope_parameters import RopeParameters
from acestep_gguf.convert.compare import compare_with_checkpoint
from tests.support.tiny_checkpoints import TinyCheckpoint

LLAMA_3_1 = RopeParameters(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


def test_short_waves_are_left_long_ones_stretched_and_those_between_in_between() -> None:
    factors = RopeFactors(TextConfig(model_type="llama", rope_parameters=LLAMA_3_1))
    found = factors.read()
    assert found.shape == factors.shape == (64,)
    assert found.dtype == np.float32
    assert (np.diff(found) >= 0).all()
    # Waves of 2 pi theta^(i / 64) tokens: up to 2,048 tokens, from 8,192 on, and between.
    assert (found[:29] == 1).all()
    assert (found[35:] == 8).all()
    assert ((found[29:35] > 1) & (found[29:35] < 8)).all()
    wave = 2 * np.pi * 500_000.0 ** (30 / 64)
    share = (8192 / wave - 1) / 3
    assert found[30] == pytest.approx(1 / ((1 - share) / 8 + share), rel=1e-5)


def test_rows_are_the_whole_vector_once() -> None:
    factors = RopeFactors(TextConfig(model_type="llama", head_dim=32, rope_parameters=LLAMA_3_1))
    assert factors.shape == (16,)
    np.testing.assert_array_equal(factors.read_rows(0, 1), factors.read()[np.newaxis])


def test_every_decoder_of_a_bundle_has_them_in_float32(tmp_path: Path) -> None:
    tiny = TinyCheckpoint(decoder="llama3", llama3_rope=True, has_tower=False)
    checkpoint = tiny.write(tmp_path / "c")
    convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"])
    bundle = convert_checkpoint(checkpoint, tmp_path / "b", ["Q4_K_M"])
    assert len(bundle.decoders.files) == 2
    for record in bundle.decoders.files.values():
        tensors = {tensor.name: tensor for tensor in read_gguf_header(tmp_path / "b" / record.file).tensors}
        assert (tensors[ROPE_FACTORS].type.name, tensors[ROPE_FACTORS].dims) == ("F32", (32,))
    assert not any(decoder.problems for decoder in compare_with_checkpoint(tmp_path / "b", checkpoint))
