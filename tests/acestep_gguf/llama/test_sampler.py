from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams

TOKENS = [5, 9, 200, 31, 7, 7, 100, 42, 3, 250, 11, 60]


@pytest.mark.parametrize("tokens", [[-1], [1, 2, 10**6], [2**31 - 1]])
def test_token_ids_outside_the_vocabulary(weights: Model, tokens: list[int]) -> None:
    with Sampler(weights, SamplingParams()) as sampler, pytest.raises(DecodeError, match="vocabulary"):
        sampler.accept(tokens)


def test_logits_that_are_not_finite(decoder_file: Path, tmp_path: Path) -> None:
    header = read_gguf_header(decoder_file)
    (norm,) = (tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    data = bytearray(decoder_file.read_bytes())
    data[norm.offset : norm.offset + norm.nbytes] = np.full(norm.n_elements, np.nan, np.float32).tobytes()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    with Model(damaged) as model, Context(model, ContextParams(n_ctx=32)) as context:
        context.decode_tokens([1], 0, n_outputs=1)
        with Sampler(model, SamplingParams()) as sampler, pytest.raises(DecodeError, match="not finite"):
            sampler.sample(context)


def test_greedy_takes_the_largest_logit(weights: Model, context: Context) -> None:
    context.decode_tokens(TOKENS, 0, n_outputs=1)
    with Sampler(weights, SamplingParams()) as sampler:
        assert sampler.sample(context) == int(np.argmax(context.logits()))


def test_the_same_seed_draws_the_same(weights: Model, context: Context) -> None:
    context.decode_tokens(TOKENS, 0, n_outputs=1)

    def draws(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        with Sampler(weights, params) as sampler:
            return [sampler.sample(context) for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)
    with Sampler(weights, SamplingParams(temperature=5.0)) as sampler:
        assert sampler.seed is not None
        drawn = [sampler.sample(context) for _ in range(20)]
    with Sampler(weights, SamplingParams(temperature=5.0, seed=sampler.seed)) as sampler:
        assert [sampler.sample(context) for _ in range(20)] == drawn
    assert len(set(draws(3))) > 5


@pytest.mark.parametrize("temperature", [5e-324, 1e-44, 1e-40, 1e-38, 1e-7, 1e-6])
def test_a_temperature_of_nearly_nothing_is_greedy(
    weights: Model, context: Context, temperature: float
) -> None:
    """Logits divided by 1e-38 are infinite, and their softmax is not a number."""
    context.decode_tokens(TOKENS, 0, n_outputs=1)
    with Sampler(weights, SamplingParams(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)) as sampler:
        assert {sampler.sample(context) for _ in range(10)} == {int(np.argmax(context.logits()))}


def test_top_k_1_is_greedy(weights: Model, context: Context) -> None:
    context.decode_tokens(TOKENS, 0, n_outputs=1)
    with Sampler(weights, SamplingParams(temperature=5.0, top_k=1)) as sampler:
        assert {sampler.sample(context) for _ in range(10)} == {int(np.argmax(context.logits()))}


def test_the_repeat_penalty_sees_prompt_and_answer(weights: Model, context: Context) -> None:
    context.decode_tokens(TOKENS, 0, n_outputs=1)
    ranking = np.argsort(-context.logits())
    best, second = int(ranking[0]), int(ranking[1])
    assert context.logits()[second] > 0  # a positive logit is divided
    with Sampler(weights, SamplingParams(repeat_penalty=100.0)) as sampler:
        sampler.accept([best])
        assert sampler.sample(context) == second
        assert sampler.sample(context) not in (best, second)
