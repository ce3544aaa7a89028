import numpy as np

from acestep_gguf.llama.key_value_state import KeyValueShape, KeyValueState
from acestep_gguf.prefill.rotation import Rotation
from tests.acestep_gguf.prefill.conftest import EMBEDS, N, Subject
from tests.support.float_layers import keys_and_values


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


def test_tables_are_of_all_positions(qwen2: Subject) -> None:
    rotation = Rotation.of(qwen2.decoder.header, 64)
    cos, sin = rotation.tables(N)
    assert cos.shape == sin.shape == (N, 32)
    assert cos.dtype == sin.dtype == np.float32
    angles = np.arange(N)[:, np.newaxis] * 1e6 ** (-np.arange(32) / 32)
    assert np.allclose(cos, np.cos(angles), atol=1e-5)
    assert np.allclose(sin, np.sin(angles), atol=1e-5)
