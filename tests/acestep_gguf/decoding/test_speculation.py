import json
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.speculation import (
    FIRST_PAUSE,
    FORGETTING,
    PRIOR_MISSES,
    Drafter,
    Pace,
    PromptLookup,
    guess_ahead,
)
from acestep_gguf.grammar.matcher import Grammar, Matcher, Vocabulary
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams

PROMPT = (5, 9, 200, 31, 7, 7, 100, 42)
DRAWN = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
# Calls of other sizes change logits; on this model by less than so much (see test_the_noise_of_calls).
NOISE = 1e-3


@pytest.fixture
def decoder(weights: Model) -> Iterator[Decoder]:
    with Context(weights, ContextParams(n_ctx=64, n_batch=16, n_outputs_max=9)) as context:
        yield Decoder(context)


class Scripted:
    """Guesses what it is given: the tokens of ``answer`` that come next, some of them made wrong."""

    def __init__(self, answer: Sequence[int], wrong: Sequence[int]) -> None:
        self._answer = [token + 1 if i in set(wrong) else token for i, token in enumerate(answer)]

    def prepare(self) -> None:
        pass

    def draft(self, answer: Sequence[int], n_max: int) -> list[int]:
        return self._answer[len(answer) : len(answer) + n_max]

    def accuracy(self, answer: Sequence[int]) -> None:
        pass


class Always(Pace):
    """Never gives up, whatever it costs on this tiny model."""

    def length(self, accuracy: float | None = None) -> int:
        return 4 if self.written_s else 0


def plain(decoder: Decoder, model: Model, sampling: SamplingParams) -> list[int]:
    decoder.reset()
    decoder.prefill([PROMPT])
    with Sampler(model, sampling) as sampler:
        return list(decoder.tokens(sampler))


def guessed(
    decoder: Decoder, model: Model, sampling: SamplingParams, drafter: Drafter, pace: Pace
) -> list[int]:
    decoder.reset()
    decoder.prefill([PROMPT])
    with Sampler(model, sampling) as sampler:
        return list(guess_ahead(decoder, sampler, drafter, pace))


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(repeat_penalty=1.3), DRAWN])
@pytest.mark.parametrize("wrong", [(), (1,), (2, 3, 11), range(0, 60, 2), range(60)])
def test_answers_do_not_depend_on_guesses(
    decoder: Decoder, weights: Model, sampling: SamplingParams, wrong: Sequence[int]
) -> None:
    answer = plain(decoder, weights, sampling)
    assert len(answer) == 64 - len(PROMPT) + 1
    pace = Always(8)
    assert guessed(decoder, weights, sampling, Scripted(answer, wrong), pace) == answer
    if not wrong:
        assert pace.n_accepted + 4 >= pace.n_drafted > 40  # the first were nonsense, to learn what they cost
    if len(wrong) == 60:
        assert pace.n_accepted == 0 < pace.n_drafted


@pytest.mark.parametrize("sampling", [SamplingParams(), DRAWN])
@pytest.mark.parametrize("wrong", [(), (2, 3, 11), range(1, 60, 3)])
def test_guesses_follow_a_grammar(
    decoder: Decoder, weights: Model, sampling: SamplingParams, wrong: Sequence[int]
) -> None:
    grammar = Grammar.of_schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 9, "minItems": 5})
    spelled = [weights.token_bytes(token) for token in range(weights.n_vocab)]
    stop = spelled.index(b"")  # a control token
    vocabulary = Vocabulary(spelled, [stop], weights.tokenize)

    def answer(drafter: Drafter | None, pace: Pace) -> list[int]:
        decoder.reset()
        decoder.prefill([PROMPT])
        with Sampler(weights, sampling, Matcher(vocabulary, grammar)) as sampler:
            tokens = (
                decoder.tokens(sampler) if drafter is None else guess_ahead(decoder, sampler, drafter, pace)
            )
            return list(takewhile(lambda token: token != stop, tokens))

    plain = answer(None, Always(8))
    text = b"".join(spelled[token] for token in plain)
    assert 5 <= len(json.loads(text)) <= 9
    # What is guessed behind the end is judged, too, and thrown away.
    assert answer(Scripted([*plain, stop, *plain], wrong), pace := Always(8)) == plain
    assert pace.n_drafted > 5


def test_what_was_computed_stays_recorded(decoder: Decoder, weights: Model) -> None:
    answer = plain(decoder, weights, SamplingParams())
    decoder.reset()
    decoder.prefill([PROMPT])
    with Sampler(weights, SamplingParams()) as sampler:
        tokens = guess_ahead(decoder, sampler, Scripted(answer, [9]), Always(8))
        taken = [next(tokens) for _ in range(7)]
        tokens.close()  # type: ignore[attr-defined]
    assert taken == answer[:7]
    followed = (*PROMPT, *answer[:8])
    assert decoder.reuse([followed], exact=False) >= len(PROMPT) + 6
    decoder.prefill([followed])
    after = decoder.context.logits()
    decoder.reset()
    decoder.prefill([followed])
    assert np.abs(after - decoder.context.logits()).max() < NOISE


def test_the_noise_of_calls(decoder: Decoder) -> None:
    tokens = [*PROMPT, 3, 250, 11, 60]
    decoder.append(tokens, n_outputs=4)
    together = [decoder.context.logits(index) for index in range(-4, 0)]
    decoder.reset()
    decoder.append(tokens[:-4])
    for token, logits in zip(tokens[-4:], together, strict=True):
        decoder.append([token])
        assert np.abs(decoder.context.logits() - logits).max() < NOISE


def test_the_sampler_reads_the_output_that_is_asked_for(decoder: Decoder, weights: Model) -> None:
    decoder.append(PROMPT, n_outputs=len(PROMPT))
    best = [int(np.argmax(decoder.context.logits(index))) for index in range(-len(PROMPT), 0)]
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, top_k=1)):
        with Sampler(weights, sampling) as sampler:
            chosen = [sampler.sample(decoder.context, index) for index in range(-len(PROMPT), 0)]
        assert chosen == best
    assert len(set(best)) > 1


def test_lookup_follows_the_latest_longest_repetition() -> None:
    #                      0  1  2  3  4  5  6  7  8
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 6])
    assert lookup.draft([7, 2, 3], 3) == [5, 6, 7]  # of two, the later one
    assert lookup.draft([7, 2, 3, 8, 1, 2, 3], 2) == [4, 9]  # three tokens say more than two
    assert lookup.draft([7, 2, 3, 8, 1, 2, 3, 60, 70], 4) == []


def test_lookup_goes_on_with_a_repetition_but_not_across_a_picture() -> None:
    assert PromptLookup([]).draft([1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert PromptLookup([1, 2, 3, None, None, 4]).draft([1, 2], 5) == [3]
    assert PromptLookup([1, 2, None, None, 4]).draft([1, 2], 5) == []


@settings(max_examples=100)
@given(
    prompt=st.lists(st.none() | st.integers(0, 3), max_size=20),
    steps=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8),
    n_max=st.integers(1, 6),
)
def test_lookup_guesses_what_stood_there(
    prompt: list[int | None], steps: list[list[int]], n_max: int
) -> None:
    lookup, answer = PromptLookup(prompt), list[int]()
    for step in steps:
        answer += step
        guesses = lookup.draft(answer, n_max)
        seen = [*prompt, *answer]
        assert len(guesses) <= n_max
        if guesses:
            beginnings = [
                i for i in range(2, len(seen)) if seen[i - 2 : i] == seen[-2:] and None not in seen[i - 2 : i]
            ]
            follows = [[*seen, *guesses][i : i + len(guesses)] for i in beginnings]
            assert guesses in follows


@given(answer=st.lists(st.integers(0, 2), max_size=40), cuts=st.sets(st.integers(0, 40)))
def test_lookup_knows_how_often_it_would_have_been_right(answer: list[int], cuts: set[int]) -> None:
    lookup, by_hand = PromptLookup([0, 1, 2]), PromptLookup([0, 1, 2])
    for cut in sorted(cuts):
        lookup.accuracy(answer[:cut])  # however much comes at once
    judged, right = PRIOR_MISSES, 0.0
    for index, token in enumerate(answer):
        for guess in by_hand.draft(answer[:index], 1):
            judged, right = FORGETTING * judged + 1, FORGETTING * right + (guess == token)
    assert lookup.accuracy(answer) == right / judged


def run(
    pace: Pace, n_calls: int, *, plain_s: float, guess_s: float, right: bool, accuracy: float | None = None
) -> tuple[int, float]:
    """Tokens and seconds of so many calls, if all guesses are right or all wrong."""
    tokens, seconds = 0, 0.0
    for _ in range(n_calls):
        n = pace.length(accuracy)
        cost = plain_s + n * guess_s
        pace.record(n, n if right else 0, cost)
        tokens += 1 + (n if right else 0)
        seconds += cost
    return tokens, seconds


def test_pace_guesses_as_much_as_it_may_while_that_gains() -> None:
    tokens, seconds = run(Pace(8), 100, plain_s=1.0, guess_s=0.2, right=True)
    assert tokens / seconds > 2.5  # 9 tokens in 2.6 seconds at best


def test_pace_gives_up_what_loses() -> None:
    tokens, seconds = run(Pace(8), 1000, plain_s=1.0, guess_s=0.2, right=False)
    assert tokens / seconds > 0.98


def test_pace_gives_up_guesses_that_cost_more_than_they_bring() -> None:
    pace = Pace(8)
    tokens, seconds = run(pace, 500, plain_s=1.0, guess_s=1.1, right=True)
    assert tokens / seconds > 0.98
    assert pace.n_drafted <= 8  # to learn what they cost


def test_pace_tries_again_after_a_pause() -> None:
    pace = Pace(8)
    run(pace, 40, plain_s=1.0, guess_s=0.2, right=False)
    tokens, seconds = run(pace, 20 * FIRST_PAUSE, plain_s=1.0, guess_s=0.2, right=True)
    assert tokens / seconds > 2


def test_pace_does_not_even_try_what_is_known_to_be_wrong() -> None:
    pace = Pace(8)
    run(pace, 500, plain_s=1.0, guess_s=0.01, right=False, accuracy=0.02)
    assert pace.n_drafted == 0
    run(pace, 9, plain_s=1.0, guess_s=0.01, right=True, accuracy=0.95)
    assert pace.n_drafted == 9 * 8


def test_pace_learns_that_many_guesses_cost_no_more_than_some() -> None:
    """As in llama.cpp's tiled products on a CPU: a call of 8 to 16 tokens takes about four plain ones."""
    pace, tokens, seconds = Pace(15), 0, 0.0
    for _ in range(200):
        n = pace.length(0.97)
        cost = 1.0 + min(n, 3)
        pace.record(n, n, cost)
        tokens, seconds = tokens + 1 + n, seconds + cost
    assert tokens / seconds > 3


def test_what_was_learned_is_remembered_for_the_next_answer() -> None:
    pace = Pace(8)
    run(pace, 100, plain_s=1.0, guess_s=1.5, right=True)
    pace.begin()
    assert run(pace, 100, plain_s=1.0, guess_s=1.5, right=True) == (100, 100.0)
    assert pace.n_drafted == 0


def test_a_draft_model_reads_nothing_where_checking_costs_too_much(decoder: Decoder, weights: Model) -> None:
    class Unwilling(Scripted):
        def prepare(self) -> None:
            pytest.fail("it was asked")

    class Costly(Pace):
        def record(self, n_drafted: int, n_accepted: int, seconds: float) -> None:
            super().record(n_drafted, n_accepted, 1.0 + n_drafted)

    answer, pace = plain(decoder, weights, SamplingParams()), Costly(8)
    assert guessed(decoder, weights, SamplingParams(), Unwilling(answer, []), pace) == answer
    assert 0 < pace.n_drafted <= 8


def test_a_short_answer_does_not_wait_for_the_drafter(decoder: Decoder, weights: Model) -> None:
    class Unwilling(Scripted):
        def prepare(self) -> None:
            pytest.fail("it was asked")

    answer = plain(decoder, weights, SamplingParams())
    decoder.reset()
    decoder.prefill([PROMPT])
    with Sampler(weights, SamplingParams()) as sampler:
        tokens = guess_ahead(decoder, sampler, Unwilling(answer, []), Always(8), patience_s=60)
        assert list(tokens) == answer
