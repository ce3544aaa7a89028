import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.kv_states import KVStates
from acestep_gguf.errors import ContextOverflowError, DecodeError
from acestep_gguf.llama.backend import Interrupted, StopFlag
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams
from acestep_gguf.prompt.segments import ImageInput, Segment, image_input
from acestep_gguf.storage.disk_cache import DiskCache

RNG = np.random.default_rng(0)
A, B = ImageInput(b"a", 10), ImageInput(b"b", 10)
EMBEDS = {
    image.key: (RNG.standard_normal((image.n_tokens, 256)) * 0.02).astype(np.float32) for image in (A, B)
}


@pytest.fixture
def context(weights: Model) -> Iterator[Context]:
    with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as opened:
        yield opened


@pytest.fixture
def decoder(context: Context) -> Decoder:
    return Decoder(context)


def test_prefill_cuts_at_n_batch_and_at_the_end_of_a_picture(decoder: Decoder, context: Context) -> None:
    tokens = tuple(range(20))
    decoder.prefill([tokens, A, (7, 8)], EMBEDS)
    assert decoder.n_past == 32
    by_decoder = context.logits()
    context.keep(0)
    context.decode_tokens(tokens[:16], 0)
    context.decode_tokens(tokens[16:], 16)
    context.decode_embeds(EMBEDS[A.key], 20)
    context.decode_tokens([7, 8], 30, n_outputs=1)
    assert np.array_equal(by_decoder, context.logits())


def test_tokens_between_the_rows_of_a_picture_are_read_as_tokens(decoder: Decoder, context: Context) -> None:
    picture = image_input(A.key, [4, 6], [(7, 8), (9,), (5,)])
    prompt: list[Segment] = [(1, 2), picture, (3,)]
    decoder.prefill(prompt, EMBEDS)
    by_decoder = context.logits()
    rows = EMBEDS[A.key]
    assert decoder.reuse([(1, 2), picture, (4,)]) == 2 + len(picture)
    assert decoder.reuse([(1, 2), replace(picture, key=b"other"), (4,)]) == 2
    context.keep(0)
    context.decode_tokens([1, 2], 0)
    context.decode_tokens([7, 8], 2)
    context.decode_embeds(rows[:4], 4)
    context.decode_tokens([9], 8)
    context.decode_embeds(rows[4:], 9)
    context.decode_tokens([5], 15)
    context.decode_tokens([3], 16, n_outputs=1)
    assert np.array_equal(by_decoder, context.logits())


def test_prefill_in_two_steps_gives_the_same_bits(decoder: Decoder, context: Context) -> None:
    decoder.prefill([(1, 2, 3), A, (4, 5)], EMBEDS)
    whole = context.logits()
    decoder.reset()
    decoder.prefill([(1, 2, 3), A], EMBEDS)
    decoder.prefill([(1, 2, 3), A, (4, 5)])
    assert np.array_equal(context.logits(), whole)


def test_without_embeds_prefill_reads_up_to_the_first_picture(decoder: Decoder, context: Context) -> None:
    decoder.prefill([(1, 2, 3), A, (4, 5)], EMBEDS)
    whole = context.logits()
    decoder.reset()
    decoder.prefill([(1, 2, 3), A, (4, 5)])
    assert decoder.n_past == 3
    decoder.prefill([(1, 2, 3), A, (4, 5)], EMBEDS)
    assert np.array_equal(context.logits(), whole)
    assert decoder.reuse([(1, 2, 3), A, (6,)]) == 13, "that was no other cut"


def test_a_prompt_may_end_with_a_picture(decoder: Decoder, context: Context) -> None:
    decoder.prefill([(1,), A], EMBEDS)
    assert np.isfinite(context.logits()).all()


def test_overflow_is_found_before_anything_is_computed(decoder: Decoder) -> None:
    with pytest.raises(ContextOverflowError, match=r"48 tokens.* 48.*raise n_ctx, up to 512"):
        decoder.prefill([(1,) * 38, A], EMBEDS)
    assert decoder.n_past == 0
    decoder.prefill([(1,) * 37, A], EMBEDS)
    with pytest.raises(ContextOverflowError):
        decoder.check_fits(48)


def test_tokens_end_with_the_context(decoder: Decoder, weights: Model) -> None:
    decoder.prefill([(1,) * 45])
    with Sampler(weights, SamplingParams()) as sampler:
        # Three positions are left, and the last token needs none.
        assert len(list(decoder.tokens(sampler))) == 4
    assert decoder.n_past == 48


def test_a_token_is_computed_only_when_the_next_is_asked_for(decoder: Decoder, weights: Model) -> None:
    decoder.prefill([(1, 2)])
    with Sampler(weights, SamplingParams()) as sampler:
        first, second = islice(decoder.tokens(sampler), 2)
    assert decoder.n_past == 3
    assert first != -1 != second


QUESTION, OTHER_QUESTION = tuple(range(30, 35)), (30, 31, 32, 50, 51, 52, 53)


def fresh_logits(weights: Model, prompt: Sequence[Segment]) -> npt.NDArray[np.float32]:
    """What a process that has read nothing else computes."""
    with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as context:
        Decoder(context).prefill(prompt, EMBEDS)
        return context.logits()


def read(decoder: Decoder, prompt: Sequence[Segment], *, exact: bool = True) -> int:
    n_reused = decoder.reuse(prompt, exact=exact)
    decoder.prefill(prompt, EMBEDS)
    return n_reused


def test_another_question_goes_on_after_the_picture(decoder: Decoder, weights: Model) -> None:
    assert read(decoder, [(1, 2, 3), A, QUESTION]) == 0
    decoder.append([9])
    assert read(decoder, [(1, 2, 3), A, OTHER_QUESTION]) == 13
    assert np.array_equal(decoder.context.logits(), fresh_logits(weights, [(1, 2, 3), A, OTHER_QUESTION]))
    assert read(decoder, [(1, 2, 3), A, OTHER_QUESTION]) == 13
    assert np.array_equal(decoder.context.logits(), fresh_logits(weights, [(1, 2, 3), A, OTHER_QUESTION]))


def test_a_chat_goes_on_after_the_answer(decoder: Decoder) -> None:
    read(decoder, [(1, 2, 3), A, QUESTION], exact=False)
    for token in (7, 8, 9):
        decoder.append([token])
    # The last token of an answer is chosen, but not computed.
    turn: list[Segment] = [(1, 2, 3), A, (*QUESTION, 7, 8, 9, 10, 60, 61)]
    assert read(decoder, turn, exact=False) == 3 + 10 + 5 + 3
    assert decoder.n_past == 3 + 10 + 5 + 6
    # An earlier turn is changed: what comes before the change is kept.
    assert read(decoder, [(1, 2, 3), A, OTHER_QUESTION], exact=False) == 3 + 10 + 3


def test_reuse_never_ends_inside_a_picture(decoder: Decoder) -> None:
    read(decoder, [(1,), A, A, (2,)], exact=False)
    assert read(decoder, [(1,), A, A], exact=False) == 11  # its last position has to give logits
    assert read(decoder, [(1,), A, B], exact=False) == 11
    assert read(decoder, [(1,), B, A], exact=False) == 1
    assert read(decoder, [(1,), B, A, (2,)], exact=False) == 21
    assert read(decoder, [(1,), B, A, (2,)], exact=False) == 21


def test_prefill_refuses_a_prompt_that_begins_otherwise(decoder: Decoder) -> None:
    decoder.prefill([(1, 2)])
    with pytest.raises(DecodeError, match="call reuse first"):
        decoder.prefill([(1, 3, 4)])


def test_a_stop_flag_ends_a_call_and_leaves_the_decoder_usable(decoder: Decoder, weights: Model) -> None:
    stop = StopFlag()
    decoder.context.watch(stop)
    decoder.prefill([(1, 2), A], EMBEDS)
    stop.set()
    with pytest.raises(Interrupted):
        decoder.prefill([(1, 2), A, B, (5,)], EMBEDS)
    with pytest.raises(Interrupted):
        decoder.append([1])
    assert decoder.n_past == 12
    decoder.context.watch(StopFlag())
    decoder.prefill([(1, 2), A, B, (5,)], EMBEDS)
    assert np.array_equal(decoder.context.logits(), fresh_logits(weights, [(1, 2), A, B, (5,)]))


def test_another_thread_sets_the_stop_flag(weights: Model) -> None:
    with Context(weights, ContextParams(n_ctx=512, n_batch=512)) as context:
        decoder, stop = Decoder(context), StopFlag()
        context.watch(stop)
        prompt = [tuple(range(300)), (7,) * 200]

        def read_again_and_again() -> None:
            while True:
                read(decoder, prompt)

        timer = threading.Timer(0.05, stop.set)
        timer.start()
        with pytest.raises(Interrupted):
            read_again_and_again()
        timer.join()
        expected = Decoder(context)
        context.watch(StopFlag())
        read(decoder, prompt)
        interrupted = context.logits()
        expected.reset()
        read(expected, prompt)
        assert np.array_equal(interrupted, context.logits())


def test_a_failure_forgets_everything(decoder: Decoder) -> None:
    decoder.prefill([(1, 2), A], EMBEDS)
    with pytest.raises(DecodeError, match="not finite"):
        decoder.prefill([(1, 2), A, B], {B.key: np.full((10, 256), np.nan, np.float32)})
    assert decoder.n_past == 0
    decoder.prefill([(1, 2)])


def prompts() -> st.SearchStrategy[list[Segment]]:
    """Prompts over few tokens, so that beginnings are often the same; texts are apart from each other."""
    texts = st.lists(st.sampled_from([3, 4]), max_size=20).map(tuple)
    pictures = st.lists(st.sampled_from([A, B]), max_size=1)

    def build(first: tuple[int, ...], picture: list[Segment], last: tuple[int, ...]) -> list[Segment]:
        return [segment for segment in (first, *picture, last) if len(segment)]

    return st.builds(build, texts, pictures, texts).filter(lambda prompt: 0 < sum(map(len, prompt)) < 48)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(prompts(), st.booleans(), st.integers(0, 2), st.booleans()), min_size=1, max_size=5)
)
def test_whatever_was_read_before_exact_reuse_gives_the_same_bits(
    weights: Model,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[list[Segment], bool, int, bool]],
) -> None:
    cache = DiskCache(tmp_path_factory.mktemp("states"))
    context = Context(weights, ContextParams(n_ctx=48, n_batch=16, n_ubatch=8))
    decoder = Decoder(context, KVStates(cache, "tiny"))
    for prompt, exact, n_answer, new_process in history:
        if new_process:
            context.close()
            context = Context(weights, ContextParams(n_ctx=48, n_batch=16, n_ubatch=8))
            decoder = Decoder(context, KVStates(cache, "tiny"))
        read(decoder, prompt, exact=exact)
        if exact:
            with Context(weights, ContextParams(n_ctx=48, n_batch=16, n_ubatch=8)) as plain:
                Decoder(plain).prefill(prompt, EMBEDS)
                assert np.array_equal(context.logits(), plain.logits())
        for token in (3, 4)[: min(n_answer, 48 - decoder.n_past)]:
            decoder.append([token])
        cache.close()
    context.close()


def test_a_new_process_goes_on_after_the_picture(weights: Model, tmp_path: Path) -> None:
    logits = []
    for question in (QUESTION, OTHER_QUESTION):
        with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as context:
            cache = DiskCache(tmp_path)
            decoder = Decoder(context, KVStates(cache, "tiny"))
            n_reused = read(decoder, [(1, 2, 3), A, question])
            cache.close()
            logits.append(context.logits())
    assert n_reused == 13
    assert np.array_equal(logits[1], fresh_logits(weights, [(1, 2, 3), A, OTHER_QUESTION]))


def test_a_state_that_llama_cpp_does_not_take_is_computed_again(weights: Model, tmp_path: Path) -> None:
    """Its hash can be right all the same: anybody who may write to the folder can make one."""
    prompt: list[Segment] = [(1, 2, 3), A, QUESTION]
    cache = DiskCache(tmp_path)
    states = KVStates(cache, "tiny")
    expected = fresh_logits(weights, prompt)
    with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as context:
        decoder = Decoder(context, states)
        read(decoder, prompt)
        decoder.cut(13)
        state = context.state()
    longer, shorter = np.append(state, np.uint8(0)), state[:-1]
    more_cells, other_position = state.copy(), state.copy()
    more_cells[12] += 1
    other_position[16 + 12 * 5] += 1
    other_model = state[: len(state) // 2]
    for bad in (state[:0], state[:7], state[:20], other_model, longer, shorter, more_cells, other_position):
        cache.put(states.name(prompt[:2]), bad)
        cache.close()
        with Context(weights, ContextParams(n_ctx=48, n_batch=16)) as context:
            assert read(Decoder(context, KVStates(DiskCache(tmp_path), "tiny")), prompt) == 0
            assert np.array_equal(context.logits(), expected)
