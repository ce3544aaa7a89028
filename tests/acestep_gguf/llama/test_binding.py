import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama import params as params_module
from acestep_gguf.llama.backend import Interrupted, StopFlag
from acestep_gguf.llama.binding import Context, Model, check_embeds
from acestep_gguf.llama.params import AMX, ContextParams, ModelParams

TOKENS = [5, 9, 200, 31, 7, 7, 100, 42, 3, 250, 11, 60]


def token_embeddings(path: Path) -> np.ndarray:
    """Rows of token_embd.weight, float32 [n_vocab, n_embd]."""
    (tensor,) = (t for t in read_gguf_header(path).tensors if t.name == "token_embd.weight")
    data = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
    rows: np.ndarray = gguf.dequantize(data, gguf.GGMLQuantizationType[tensor.type.name])
    return rows.reshape(tensor.dims[::-1]).astype(np.float32)


def test_embeds_of_tokens_give_the_logits_of_the_tokens(
    weights: Model, context: Context, decoder_file: Path
) -> None:
    context.decode_tokens(TOKENS, 0, n_outputs=len(TOKENS))
    by_tokens = [context.logits(index) for index in range(-len(TOKENS), 0)]
    context.keep(0)
    context.decode_embeds(token_embeddings(decoder_file)[TOKENS], 0, n_outputs=len(TOKENS))
    by_embeds = [context.logits(index) for index in range(-len(TOKENS), 0)]
    assert np.array_equal(by_tokens, by_embeds)
    assert np.std(by_tokens) > 0.01


def test_positions_after_keep_are_computed_again(context: Context) -> None:
    context.decode_tokens(TOKENS[:8], 0)
    context.decode_tokens(TOKENS[8:], 8, n_outputs=1)
    expected = context.logits()
    context.keep(8)
    context.decode_tokens([1, 2, 3], 8)
    context.keep(8)
    context.decode_tokens(TOKENS[8:], 8, n_outputs=1)
    assert np.array_equal(context.logits(), expected)


def test_control_tokens_in_text_stay_text(weights: Model) -> None:
    text = "a<|im_end|><image>b"
    assert b"".join(map(weights.token_bytes, weights.tokenize(text))) == text.encode()


def test_texts_survive_tokenizing(weights: Model) -> None:
    for text in ("", "hello world", "日本語 🎉 \x00 nul", "x" * 5000):
        assert b"".join(map(weights.token_bytes, weights.tokenize(text))).decode() == text


@pytest.mark.parametrize("tokens", [[-1], [1, 2, 10**6], [2**31 - 1]])
def test_token_ids_outside_the_vocabulary(weights: Model, context: Context, tokens: list[int]) -> None:
    with pytest.raises(DecodeError, match="vocabulary"):
        context.decode_tokens(tokens, 0)
    with pytest.raises(DecodeError, match="vocabulary"):
        weights.token_bytes(tokens[-1])


def test_batches_that_would_end_the_process(context: Context) -> None:
    for tokens, position, n_outputs in (
        ([], 0, 0),
        ([1] * 17, 0, 0),  # n_batch is 16
        ([1], 5, 0),  # nothing at positions 0 to 4
        ([1], -1, 0),
        ([1], 0, 2),
        ([1], 0, -1),
    ):
        with pytest.raises(DecodeError):
            context.decode_tokens(tokens, position, n_outputs=n_outputs)
    for position in range(0, 64, 16):
        context.decode_tokens([1] * 16, position)
    with pytest.raises(DecodeError, match="n_ctx"):
        context.decode_tokens([1], 64)


@pytest.mark.parametrize(
    "embeds",
    [
        np.zeros((2, 255), np.float32),
        np.zeros((0, 256), np.float32),
        np.zeros((2, 256), np.float64),
        np.zeros(256, np.float32),
        np.full((2, 256), np.nan, np.float32),
        np.full((2, 256), np.inf, np.float32),
    ],
)
def test_embeds_that_are_not_sound(context: Context, embeds: np.ndarray) -> None:
    with pytest.raises(DecodeError):
        context.decode_embeds(embeds, 0)
    with pytest.raises(DecodeError):
        check_embeds(embeds, 256)


def test_logits_that_were_not_asked_for(context: Context) -> None:
    context.decode_tokens([1, 2], 0)
    with pytest.raises(DecodeError, match="output"):
        context.logits()
    context.decode_tokens([1, 2], 2, n_outputs=1)
    context.logits(-1)
    for index in (-2, 0, 1):
        with pytest.raises(DecodeError, match="output"):
            context.logits(index)


def test_a_file_that_llama_cpp_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model")
    with pytest.raises(DecodeError, match=r"llama.cpp cannot load .*text.gguf: .*(magic|load)"):
        Model(path)
    assert capfd.readouterr() == ("", "")


def test_layers_on_a_gpu_that_is_not_there(decoder_file: Path) -> None:
    for n_gpu_layers in (-2, 2**31, "2", None, 1.5):
        with pytest.raises(UsageError, match="n_gpu_layers"):
            ModelParams(n_gpu_layers=n_gpu_layers)  # type: ignore[arg-type]
    if not llama_cpp.llama_supports_gpu_offload():
        with pytest.raises(UsageError, match="without a GPU"):
            Model(decoder_file, ModelParams(n_gpu_layers=1))


LOCKS_LITTLE = """
import ctypes
import resource
import sys
from pathlib import Path

from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.params import ModelParams

resource.setrlimit(resource.RLIMIT_MEMLOCK, (2**16, 2**16))
# Without its privileges, which know no limit: version 3 of this process, and three sets of none.
head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(head, sets) == 0
for use_mlock in (False, True):
    Model(Path(sys.argv[1]), ModelParams(use_mlock=use_mlock, use_mmap=sys.argv[2] == "mapped"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="privileges are dropped as Linux does it")
@pytest.mark.parametrize("kind", ["mapped", "read"])
def test_weights_that_cannot_be_locked(decoder_file: Path, kind: str) -> None:
    command = [sys.executable, "-c", LOCKS_LITTLE, str(decoder_file), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("UserWarning") == 1
    assert "could not be locked in memory (Cannot allocate memory): raise the limit" in done.stderr


def test_a_path_with_odd_characters(decoder_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode("größe ü\udcff.gguf".encode("utf-8", "surrogateescape"))
    odd.symlink_to(decoder_file)
    with Model(odd) as model:
        assert model.n_embd == 256


def test_llama_cpp_is_quiet(decoder_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Model(decoder_file) as model, Context(model, ContextParams(n_ctx=32)) as context:
        context.decode_tokens([1], 0, n_outputs=1)
    assert capfd.readouterr() == ("", "")


def test_closed_objects_say_so(decoder_file: Path) -> None:
    model = Model(decoder_file)
    context = Context(model, ContextParams(n_ctx=32))
    context.decode_tokens([1], 0, n_outputs=1)
    context.close()
    context.close()
    with pytest.raises(UsageError, match="Context is closed"):
        context.decode_tokens([1], 1)
    with pytest.raises(UsageError, match="Context is closed"):
        context.logits()
    with pytest.raises(UsageError, match="Context is closed"):
        context.keep(0)
    model.close()
    with pytest.raises(UsageError, match="Model is closed"):
        model.tokenize("x")
    with pytest.raises(UsageError, match="Model is closed"):
        model.token_bytes(1)
    with pytest.raises(UsageError, match="Model is closed"):
        Context(model, ContextParams(n_ctx=32))


def test_settings_reach_llama_cpp(weights: Model) -> None:
    for params in (
        ContextParams(n_ctx=1),
        ContextParams(n_ctx=100, n_batch=7, n_ubatch=3, n_threads=2, n_threads_batch=2),
        ContextParams(n_ctx=64, type_k="f32", type_v="f32", flash_attn="off"),
        ContextParams(n_ctx=64, type_k="q8_0", type_v="q8_0"),
    ):
        with Context(weights, params) as context:
            context.decode_tokens([1], 0, n_outputs=1)
            assert np.isfinite(context.logits()).all()


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"flash_attn": "off"},
        {"type_k": "q8_0", "type_v": "q8_0", "flash_attn": "on"},
        {"type_k": "f32", "type_v": "bf16"},
    ],
)
def test_a_state_is_restored_to_the_bit(weights: Model, kind: dict[str, Any]) -> None:
    with Context(weights, ContextParams(n_ctx=64, **kind)) as context:
        context.decode_tokens(TOKENS[:8], 0)
        state = context.state()
        assert len(state) == context.state_bytes()
        context.decode_tokens(TOKENS[8:], 8, n_outputs=1)
        expected = context.logits()
    with Context(weights, ContextParams(n_ctx=256, **kind)) as context:
        for _ in range(2):
            assert context.restore(state, 8)
            context.decode_tokens(TOKENS[8:], 8, n_outputs=1)
            assert np.array_equal(context.logits(), expected)


def test_a_state_of_another_kind_of_context_is_not_taken(weights: Model) -> None:
    with Context(weights, ContextParams(n_ctx=64)) as context:
        context.decode_tokens(TOKENS, 0)
        state = context.state()
    for params in (
        ContextParams(n_ctx=64, type_k="f32"),
        ContextParams(n_ctx=64, flash_attn="off"),
        ContextParams(n_ctx=len(TOKENS) - 1),
    ):
        with Context(weights, params) as context:
            context.decode_tokens([1], 0)
            assert not context.restore(state, len(TOKENS))
            context.decode_tokens(TOKENS[:5], 0, n_outputs=1)  # nothing is left of either
            assert np.isfinite(context.logits()).all()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_state_does_not_end_the_process(
    weights: Model, context: Context, data: st.DataObject
) -> None:
    """Positions, counts and types are checked; numbers cannot be, which is why files have a hash."""
    context.keep(0)
    context.decode_tokens(TOKENS, 0)
    state = context.state()
    n_meta = 16 + 12 * len(TOKENS) + 8
    for _ in range(data.draw(st.integers(1, 3))):
        state[data.draw(st.one_of(st.integers(0, n_meta), st.integers(0, len(state) - 1)))] ^= data.draw(
            st.integers(1, 255)
        )
    context.restore(
        state[: data.draw(st.sampled_from([len(state), len(state) - 1, n_meta, 20]))], len(TOKENS)
    )


def test_a_stop_flag(context: Context) -> None:
    stop = StopFlag()
    context.watch(stop)
    context.decode_tokens(TOKENS[:4], 0)
    stop.set()
    with pytest.raises(Interrupted):
        context.decode_tokens(TOKENS[4:], 4)
    with pytest.raises(Interrupted):
        stop.check()
    context.watch(StopFlag())
    context.keep(4)
    context.decode_tokens(TOKENS[4:], 4, n_outputs=1)
    assert np.isfinite(context.logits()).all()


def test_weights_are_not_repacked_where_it_would_crash(
    decoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params_module, "cpu_flags", lambda: frozenset({AMX}))
    with pytest.raises(UsageError, match="use_extra_bufts"):
        Model(decoder_file, ModelParams(use_extra_bufts=True))
