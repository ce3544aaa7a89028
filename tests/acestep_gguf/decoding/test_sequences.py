"""Several sequences in one context, next to a context of their own for each."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.decoding.decoder import Decoder, append_each
from acestep_gguf.decoding.kv_states import KVStates
from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.storage.disk_cache import DiskCache

PARAMS = ContextParams(n_ctx=256, n_batch=64, n_ubatch=32, n_outputs_max=4)
PICTURE = ImageInput(b"picture", 20)
PROMPTS: list[list[Segment]] = [
    [(5, 9, 200, 31), PICTURE, (7, 7, 100)],
    [(5, 9, 200, 31), PICTURE, (42, 3)],
    [(1, 2, 3, 250, 11)],
]


@pytest.fixture(scope="module")
def embeds(weights: Model) -> dict[bytes, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((PICTURE.n_tokens, weights.n_embd)).astype(np.float32)
    return {PICTURE.key: rows / 10}


@pytest.fixture
def decoders(weights: Model) -> Iterator[list[Decoder]]:
    params = ContextParams(n_ctx=256, n_seq_max=4, n_batch=64, n_ubatch=32, n_outputs_max=4)
    with Context(weights, params) as context:
        yield [Decoder(context, sequence=number) for number in range(4)]


def alone(weights: Model, prompt: list[Segment], embeds: dict[bytes, np.ndarray], n: int) -> list[int]:
    with Context(weights, PARAMS) as context, Sampler(weights, SamplingParams()) as sampler:
        decoder = Decoder(context)
        decoder.prefill(prompt, embeds)
        return list(itertools.islice(decoder.tokens(sampler), n))


def test_each_sequence_reads_to_the_bit_what_it_would_alone(
    weights: Model, decoders: list[Decoder], embeds: dict[bytes, np.ndarray]
) -> None:
    for decoder, prompt in zip(decoders[1:], PROMPTS, strict=True):
        decoder.prefill(prompt, embeds)
        together = decoder.context.logits()
        with Context(weights, PARAMS) as context:
            Decoder(context).prefill(prompt, embeds)
            np.testing.assert_array_equal(together, context.logits())


def test_tokens_of_several_sequences_in_one_call(
    weights: Model, decoders: list[Decoder], embeds: dict[bytes, np.ndarray]
) -> None:
    with Sampler(weights, SamplingParams()) as sampler:
        texts: list[list[int]] = []
        for decoder, prompt in zip(decoders[1:], PROMPTS, strict=True):
            decoder.prefill(prompt, embeds)
            texts.append([sampler.sample(decoder.context)])
        for _ in range(7):
            append_each(decoders[1:], [text[-1] for text in texts])
            for number, text in enumerate(texts):
                text.append(sampler.sample(decoders[0].context, number - len(texts)))
    assert texts == [alone(weights, prompt, embeds, 8) for prompt in PROMPTS]


def test_a_copy_goes_on_from_where_prompts_part(
    weights: Model, decoders: list[Decoder], embeds: dict[bytes, np.ndarray]
) -> None:
    decoders[0].prefill(PROMPTS[0], embeds)
    assert decoders[0].n_reusable(PROMPTS[1]) == 24
    decoders[2].prefill(PROMPTS[2])
    decoders[2].copy_of(decoders[0])
    decoders[0].reset()  # the copy does not need it any more
    assert decoders[2].reuse(PROMPTS[1]) == 24
    decoders[2].prefill(PROMPTS[1])
    with Sampler(weights, SamplingParams()) as sampler:
        assert list(itertools.islice(decoders[2].tokens(sampler), 8)) == alone(weights, PROMPTS[1], embeds, 8)


def test_states_go_from_one_sequence_to_another_and_to_a_context_of_one(
    weights: Model, decoders: list[Decoder], embeds: dict[bytes, np.ndarray], tmp_path: Path
) -> None:
    cache = DiskCache(tmp_path)
    states = KVStates(cache, "test")
    context = decoders[0].context
    Decoder(context, states, sequence=3).prefill(PROMPTS[0], embeds)
    cache.close()
    elsewhere = Decoder(context, states, sequence=1)
    assert elsewhere.reuse(PROMPTS[1]) == 24
    elsewhere.prefill(PROMPTS[1])
    logits = context.logits()
    with Context(weights, PARAMS) as single:
        decoder = Decoder(single, states)
        assert decoder.reuse(PROMPTS[1]) == 24
        decoder.prefill(PROMPTS[1])
        np.testing.assert_array_equal(single.logits(), logits)
    with Context(weights, PARAMS) as single:
        assert single.restore(context.state(sequence=3), context.n_past(3))


def test_what_does_not_fit_together_is_refused(decoders: list[Decoder]) -> None:
    context = decoders[0].context
    for tokens, positions, sequences in (
        ([1, 2], [0, 0], [1, 1]),
        ([1], [0, 0], [0, 1]),
        ([1], [1], [0]),
        ([1], [0], [4]),
        ([1], [0], [-1]),
        ([10**6], [0], [0]),
        ([1] * 5, [0] * 5, [0, 1, 2, 3, 4]),
    ):
        with pytest.raises(DecodeError):
            context.decode_each(tokens, positions, sequences)
    context.decode_each([1, 2], [0, 0], [1, 3])
    assert [context.n_past(number) for number in range(4)] == [0, 1, 0, 1]
