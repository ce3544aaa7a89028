import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.key_value_state import KeyValueShape, KeyValueState, StateLayout
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.options import CacheType, FlashAttention

TOKENS = [*range(20, 40)]
N_PAST = 8
SIZES = {"n_layers": 2, "n_head_kv": 2, "n_embd_head": 64}


def opened(weights: Model, cache_type: CacheType, flash_attn: FlashAttention) -> Context:
    params = ContextParams(
        n_ctx=64, n_seq_max=2, n_outputs_max=2, type_k=cache_type, type_v=cache_type, flash_attn=flash_attn
    )
    return Context(weights, params)


@pytest.mark.parametrize("cache_type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("flash_attn", ["on", "off"])
def test_what_llama_cpp_computed_is_handed_over_to_the_bit(
    weights: Model, cache_type: CacheType, flash_attn: FlashAttention
) -> None:
    with opened(weights, cache_type, flash_attn) as source, opened(weights, cache_type, flash_attn) as target:
        source.decode_tokens(TOKENS, 0)
        shape = KeyValueShape.of(source, **SIZES)
        whole = KeyValueState(source, shape, 0)
        target.decode_tokens(TOKENS[:N_PAST], 0, sequence=1)
        state = KeyValueState(target, shape, len(TOKENS) - N_PAST, sequence=1)
        assert state.n_past == N_PAST
        for bid in range(SIZES["n_layers"]):
            keys, values = whole.past(bid)
            assert keys.shape == values.shape == (1, 2, len(TOKENS), 64)
            state.set(bid, keys[:, :, N_PAST:], values[:, :, N_PAST:])
        state.hand_over()
        ours = KeyValueState(target, shape, 0, sequence=1)
        for bid in range(SIZES["n_layers"]):
            for mine, theirs in zip(ours.past(bid), whole.past(bid), strict=True):
                assert np.array_equal(mine[:, :, N_PAST:], theirs[:, :, N_PAST:])
                assert np.allclose(mine[:, :, :N_PAST], theirs[:, :, :N_PAST], atol=1e-2)
        assert target.n_past(1) == len(TOKENS)
        assert target.n_past(0) == 0


def test_states_of_many_gigabytes_are_laid_out() -> None:
    """NumPy holds the size of a structure in 31 bits, so there is none of the whole."""
    shape = KeyValueShape(n_layers=64, n_head_kv=8, n_embd_head=128, type_k=1, type_v=1, is_transposed=False)
    n = 131_072
    assert StateLayout(shape, n).n_bytes == 16 + 12 * n + 8 + 64 * (24 + 2 * 1024 * 2 * n)


def test_memory_holds_one_copy(weights: Model) -> None:
    """With other sequences beside it, and behind many positions, too."""
    n, n_new = 4096, 8
    params = ContextParams(
        n_ctx=n + n_new, n_seq_max=3, n_batch=n, n_outputs_max=3, type_k="f32", type_v="f32"
    )
    with Context(weights, params) as context:
        context.decode_tokens([7] * n, 0, sequence=1)
        tracemalloc.start()
        state = KeyValueState(context, KeyValueShape.of(context, **SIZES), n_new, sequence=1)
        for bid in range(SIZES["n_layers"]):
            new = np.ones((1, 2, n_new, 64), np.float32)
            state.set(bid, new, new)
        state.hand_over()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert context.n_past(1) == n + n_new
    whole = 2 * SIZES["n_layers"] * 2 * 64 * 4 * n
    layer = whole / (2 * SIZES["n_layers"])
    assert whole < peak < whole + 1.5 * layer


def test_another_layout_is_refused(weights: Model) -> None:
    with opened(weights, "f16", "on") as context:
        context.decode_tokens(TOKENS, 0)
        for wrong in ({"n_layers": 3}, {"n_head_kv": 4}, {"n_embd_head": 32}):
            shape = KeyValueShape.of(context, **(SIZES | wrong))
            with pytest.raises(DecodeError, match="lays out keys and values otherwise"):
                KeyValueState(context, shape, 4)
            context.keep(0, sequence=1)
            state = KeyValueState(context, shape, 4, sequence=1)
            with pytest.raises(DecodeError, match="does not take keys and values"):
                state.hand_over()
            assert context.n_past(1) == 0


def test_sizes_are_the_files(decoder_file: Path) -> None:
    metadata = read_gguf_header(decoder_file).metadata
    assert metadata["qwen2.block_count"] == SIZES["n_layers"]
    assert metadata["qwen2.attention.head_count_kv"] == SIZES["n_head_kv"]
