from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from acestep_gguf.decoder import Decoder
from acestep_gguf.errors import ContextOverflowError
from acestep_gguf.llama import Context, Model, Sampler
from acestep_gguf.params import ContextParams, SamplingParams

RNG = np.random.default_rng(0)
PICTURE = (RNG.standard_normal((10, 256)) * 0.02).astype(np.float32)


@pytest.fixture
def context(weights: Model) -> Iterator[Context]:
    with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as opened:
        yield opened


@pytest.fixture
def decoder(context: Context) -> Decoder:
    return Decoder(context)


def test_prefill_cuts_at_n_batch_and_at_the_end_of_a_picture(decoder: Decoder, context: Context) -> None:
    tokens = list(range(20))
    decoder.prefill([tokens, PICTURE, [7, 8]])
    assert decoder.n_past == 32
    by_decoder = context.logits()
    context.keep(0)
    context.decode_tokens(tokens[:16], 0)
    context.decode_tokens(tokens[16:], 16)
    context.decode_embeds(PICTURE, 20)
    context.decode_tokens([7, 8], 30, n_outputs=1)
    assert np.array_equal(by_decoder, context.logits())


def test_prefill_in_two_steps_gives_the_same_bits(decoder: Decoder, context: Context) -> None:
    decoder.prefill([[1, 2, 3], PICTURE, [4, 5]])
    whole = context.logits()
    decoder.reset()
    decoder.prefill([[1, 2, 3], PICTURE])
    decoder.prefill([[4, 5]])
    assert np.array_equal(context.logits(), whole)


def test_a_prompt_may_end_with_a_picture(decoder: Decoder, context: Context) -> None:
    decoder.prefill([[1], PICTURE])
    assert np.isfinite(context.logits()).all()


def test_overflow_is_found_before_anything_is_computed(decoder: Decoder) -> None:
    with pytest.raises(ContextOverflowError, match=r"48 tokens.* 48.*--ctx-size \(n_ctx\) up to 512"):
        decoder.prefill([[1] * 38, PICTURE])
    assert decoder.n_past == 0
    decoder.prefill([[1] * 37, PICTURE])
    with pytest.raises(ContextOverflowError):
        decoder.check_fits(48)


def test_tokens_end_with_the_context(decoder: Decoder, weights: Model) -> None:
    decoder.prefill([[1] * 45])
    with Sampler(weights, SamplingParams()) as sampler:
        # Three positions are left, and the last token needs none.
        assert len(list(decoder.tokens(sampler))) == 4
    assert decoder.n_past == 48


def test_a_token_is_computed_only_when_the_next_is_asked_for(decoder: Decoder, weights: Model) -> None:
    decoder.prefill([[1, 2]])
    with Sampler(weights, SamplingParams()) as sampler:
        first, second = islice(decoder.tokens(sampler), 2)
    assert decoder.n_past == 3
    assert first != -1 != second
