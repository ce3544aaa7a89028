from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.gguf_header import GGUFHeader
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError
from acestep_gguf.llama.key_value_state import KeyValueShape, KeyValueState
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.prefill.rotation import Rotation
from tests.acestep_gguf.prefill.conftest import EMBEDS, N, Subject
from tests.support.float_layers import keys_and_values
from tests.support.tiny_checkpoints import TinyCheckpoint


def test_keys_of_the_first_layer_are_rotated_as_llama_cpp_rotates_them(subject: Subject) -> None:
    shape = subject.decoder.shape
    rotation = Rotation.of(subject.decoder.header, shape.n_embd_head)
    with subject.context() as context:
        context.decode_embeds(EMBEDS, 0)
        layout = KeyValueShape.of(
            context, n_layers=shape.n_layer, n_head_kv=shape.n_head_kv, n_embd_head=shape.n_embd_head
        )
        own, _ = KeyValueState(context, layout, 0).past(0)
    ours, _ = keys_and_values(subject.checkpoint, rotation, EMBEDS)[0]
    assert np.abs(ours - own).max() < 1e-4 * np.abs(own).max()


def rotation_with(header: GGUFHeader, **said: float) -> Rotation:
    """Of the same file, if it said YaRN, and this."""
    metadata = {**header.metadata, "qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0}
    for key, value in said.items():
        metadata[f"qwen2.{key.replace('__', '.')}"] = value
    return Rotation.of(replace(header, metadata=metadata), 64)


def test_what_describes_no_rotation_is_refused(qwen2: Subject) -> None:
    header = qwen2.decoder.header
    with pytest.raises(BundleError, match="a base of 1"):
        rotation_with(header, rope__freq_base=1.0)
    with pytest.raises(BundleError, match="a context of 0"):
        rotation_with(header, context_length=0, rope__scaling__original_context_length=0)


def test_a_context_of_zero_is_the_trained_one(qwen2: Subject) -> None:
    """As in llama.cpp."""

    def kept(n_ctx: float) -> list[float]:
        said = {"context_length": 2048, "rope__scaling__original_context_length": n_ctx}
        return list(rotation_with(qwen2.decoder.header, **said).kept)

    assert kept(0) == kept(2048) != kept(64)


def test_factors_of_other_heads_are_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(decoder="llama3", llama3_rope=True, has_tower=False)
    convert_checkpoint(checkpoint.write(tmp_path / "checkpoint"), tmp_path / "bundle", ["F32"])
    header = BundleModel(tmp_path / "bundle").decoder("F32").header
    n_embd_head = header.metadata["llama.rope.dimension_count"]
    assert isinstance(n_embd_head, int)
    with pytest.raises(BundleError, match=f"rope_freqs.weight has {n_embd_head // 2} numbers for"):
        Rotation.of(header, 2 * n_embd_head)


def test_tables_are_of_all_positions(qwen2: Subject) -> None:
    rotation = Rotation.of(qwen2.decoder.header, 64)
    cos, sin = rotation.tables(N)
    assert cos.shape == sin.shape == (N, 32)
    assert cos.dtype == sin.dtype == np.float32
    angles = np.arange(N)[:, np.newaxis] * 1e6 ** (-np.arange(32) / 32)
    assert np.allclose(cos, np.cos(angles), atol=1e-5)
    assert np.allclose(sin, np.sin(angles), atol=1e-5)
