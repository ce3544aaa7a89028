import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep_gguf import AceStep, AceStepError, Answer, AnswerOptions, Chunk, Question
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cli.info import facts_and_settings, table
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import (
    BundleError,
    ContextOverflowError,
    ImageError,
    PromptError,
    UnsupportedModelError,
    UsageError,
)
from acestep_gguf.prompt.messages import Message
from tests.support.tiny_checkpoints import TinyCheckpoint


def streamed(chunks: Iterator[Chunk]) -> tuple[str, Answer]:
    texts, answer = [], None
    for chunk in chunks:
        assert answer is None, "a chunk after the last"
        texts.append(chunk.text)
        answer = chunk.answer
    assert answer is not None
    return "".join(texts), answer


def test_an_answer_and_its_counts(model: AceStep, picture: Path) -> None:
    answer = model.generate("What is this?", [picture, picture], max_tokens=8)
    assert answer.text
    assert answer.usage.image_tokens == 8
    assert answer.usage.prompt_tokens > 8 + 10
    assert 1 <= answer.usage.completion_tokens <= 8
    assert answer.timings.prefill_tokens == answer.usage.prompt_tokens
    # The first token is chosen from what the prompt gave, and the last one of "length" is not computed.
    not_computed = answer.finish_reason == "length"
    assert answer.timings.decode_tokens == answer.usage.completion_tokens - not_computed
    assert answer.timings.prefill_tokens_per_s is not None
    assert answer.timings.decode_tokens_per_s is not None
    assert answer.timings.total_s > 0


def test_greedy_answers_repeat(model: AceStep, picture: Path) -> None:
    texts = {model.generate("Describe it", [picture], max_tokens=30).text for _ in range(3)}
    assert len(texts) == 1
    model.generate("Something else altogether", max_tokens=5)
    assert model.generate("Describe it", [picture], max_tokens=30).text in texts


def test_the_picture_makes_a_difference(model: AceStep, picture: Path) -> None:
    other = Image.new("RGB", (28, 28), (0, 0, 255))
    with_one = model.generate("Describe it", [picture], max_tokens=30).text
    assert model.generate("Describe it", [other], max_tokens=30).text != with_one
    assert model.generate("Describe it", [picture.read_bytes()], max_tokens=30).text == with_one
    assert model.generate("Describe it", [Image.open(picture)], max_tokens=30).text == with_one


def test_a_stream_is_the_answer_in_pieces(model: AceStep, picture: Path) -> None:
    expected = model.generate("Describe it", [picture], max_tokens=40)
    text, answer = streamed(model.stream("Describe it", [picture], max_tokens=40))
    assert text == answer.text == expected.text
    assert answer.usage == expected.usage
    assert answer.finish_reason == expected.finish_reason


def test_messages_with_several_turns(model: AceStep, picture: Path) -> None:
    turns: list[Message] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    answer = model.generate(turns, [picture], max_tokens=4)
    assert answer.usage.image_tokens == 4
    with pytest.raises(PromptError, match="image"):
        model.generate(turns, max_tokens=4)


def test_max_tokens_and_stop_strings(model: AceStep) -> None:
    long = model.generate("hello", max_tokens=30)
    short = model.generate("hello", max_tokens=1)
    assert short.usage.completion_tokens == 1
    assert short.finish_reason == "length"
    assert long.text.startswith(short.text)
    stop = long.text[len(long.text) // 2 :][:2]
    stopped = model.generate("hello", max_tokens=30, stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == long.text[: long.text.index(stop)]


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(bundle_copy: Path) -> None:
    # An output matrix that knows nothing but the two stop tokens, whose logits are each other's negative.
    bundle = Bundle.read(bundle_copy)
    path = bundle_copy / bundle.decoder("F32").file
    (output,) = (t for t in read_gguf_header(path).tensors if t.name == "output.weight")
    matrix = np.zeros(output.dims[::-1], np.float32)
    first, second = (bundle.prompt.control_tokens[token] for token in bundle.prompt.stop_tokens)
    matrix[first], matrix[second] = 1.0, -1.0
    with path.open("r+b") as file:
        file.seek(output.offset)
        file.write(matrix.tobytes())
    with AceStep(bundle_copy, quant="F32", n_threads=1) as model:
        text, answer = streamed(model.stream("hello", max_tokens=30))
    assert text == answer.text == ""
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens == 0


def test_sampling_follows_its_seed(model: AceStep) -> None:
    def draw(seed: int) -> str:
        return model.generate(
            "hello", max_tokens=20, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed
        ).text

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_answer_says_which_seed_makes_it_again(tiny_bundle: Path) -> None:
    # Exact, and asked in the same way again: a draw tells numbers apart that differ in their last bit.
    drawn = AnswerOptions(max_tokens=20, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, exact=True)
    for n_parallel in (1, 2):
        with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=64, n_parallel=n_parallel) as model:
            first = [outcome.answer for outcome in model.batch([Question("hello", options=drawn)] * 2)]
            seeds = [answer.seed for answer in first if answer is not None]
            assert len(set(seeds)) == 2
            asked = [Question("hello", options=replace(drawn, seed=seed)) for seed in seeds]
            again = [outcome.answer for outcome in model.batch(asked)]
            assert [answer and answer.tokens for answer in again] == [
                answer and answer.tokens for answer in first
            ]
            assert model.generate("hello", max_tokens=1).seed is None


def test_settings_out_of_range_are_refused_at_once(model: AceStep) -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        model.stream("x", max_tokens=0)
    for max_tokens in ("5", None, 1.5):
        with pytest.raises(UsageError, match="max_tokens"):
            model.stream("x", max_tokens=max_tokens)
    with pytest.raises(UsageError, match=r"stop is \[1\]"):
        model.stream("x", stop=[1])
    with pytest.raises(UsageError, match="temperature"):
        model.stream("x", temperature=-1)
    with pytest.raises(UsageError, match="images is no list"):
        model.stream("x", "photo.jpg")
    with pytest.raises(UsageError, match="stop is 'END'"):
        model.stream("x", stop="END")


def test_a_prompt_longer_than_the_context(model: AceStep, picture: Path) -> None:
    with pytest.raises(ContextOverflowError, match=r"has \d+ tokens, the context holds 256"):
        model.generate("many words " * 400)
    # Counted before a picture is even opened.
    with pytest.raises(ContextOverflowError):
        model.generate("x", ["missing.png"] * 64)
    assert model.generate("x", [picture], max_tokens=1).text is not None


def test_an_answer_ends_with_the_context(tiny_bundle: Path) -> None:
    with AceStep(tiny_bundle, quant="F32", n_ctx=40, n_threads=1) as model:
        answer = model.generate("x", max_tokens=1000, stop=())
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 41
        assert answer.finish_reason == "length"


def test_errors_leave_the_model_usable(model: AceStep, tmp_path: Path) -> None:
    expected = model.generate("hello", max_tokens=5).text
    (tmp_path / "bad.png").write_text("no picture")
    for images in ([tmp_path / "bad.png"], [tmp_path / "none.png"], [b""]):
        with pytest.raises(ImageError):
            model.generate("hello", images)
    assert model.generate("hello", max_tokens=5).text == expected


def test_an_unfinished_stream_gives_its_turn_back(model: AceStep) -> None:
    stream = model.stream("hello", max_tokens=50)
    next(stream)
    with pytest.raises(UsageError, match="stream"):
        model.generate("hello")
    stream.close()
    assert model.generate("hello", max_tokens=3).text
    abandoned = model.stream("hello", max_tokens=50)
    next(abandoned)
    del abandoned
    assert model.generate("hello", max_tokens=3).text


def test_threads_take_turns(model: AceStep, picture: Path) -> None:
    questions = ["one", "two", "three", "four"]
    expected = {question: model.generate(question, [picture], max_tokens=12).text for question in questions}
    answers: dict[str, str] = {}

    def ask(question: str) -> None:
        answers[question] = streamed(model.stream(question, [picture], max_tokens=12))[0]

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected


def test_a_closed_model_says_so(tiny_bundle: Path) -> None:
    model = AceStep(tiny_bundle, n_threads=1)
    stream = model.stream("hello", max_tokens=50)
    next(stream)
    model.close()
    model.close()
    assert list(stream) == []
    with pytest.raises(UsageError, match="closed"):
        model.generate("hello")
    with pytest.raises(UsageError, match="closed"):
        model.__enter__()


def test_a_stream_that_was_not_begun_says_that_the_model_is_closed(tiny_bundle: Path) -> None:
    model = AceStep(tiny_bundle, n_threads=1)
    running, waiting = model.stream("hello", max_tokens=50), model.stream("hello")
    next(running)
    model.close()
    assert list(running) == []
    with pytest.raises(UsageError, match="closed"):
        next(waiting)


def test_another_thread_may_go_on_with_a_stream(model: AceStep) -> None:
    expected = model.generate("hello", max_tokens=30).text
    stream = model.stream("hello", max_tokens=30)
    texts = [next(stream).text]
    refused: list[UsageError] = []

    def go_on() -> None:
        texts.append(next(stream).text)
        try:
            model.generate("hello")
        except UsageError as error:
            refused.append(error)

    other = threading.Thread(target=go_on, daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert len(refused) == 1
    texts += [chunk.text for chunk in stream]
    assert "".join(texts) == expected
    assert model.generate("hello", max_tokens=30).text == expected


def test_close_waits_for_the_answer_of_another_thread(tiny_bundle: Path) -> None:
    model = AceStep(tiny_bundle, n_threads=1, n_ctx=512)
    started, texts = threading.Event(), []

    def ask() -> None:
        for chunk in model.stream("hello", max_tokens=100):
            started.set()
            texts.append(chunk)

    thread = threading.Thread(target=ask)
    thread.start()
    started.wait(30)
    model.close()
    thread.join()
    assert texts[-1].answer is not None


def test_a_context_longer_than_the_models_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"n_ctx is 513: .* 512 tokens"):
        AceStep(tiny_bundle, n_ctx=513)


def test_a_context_beyond_the_window_is_refused(tmp_path: Path) -> None:
    tiny = TinyCheckpoint(decoder="mistral", sliding_window=64, has_tower=False)
    convert_checkpoint(tiny.write(tmp_path / "c"), tmp_path / "b", ["Q8_0"])
    with pytest.raises(UsageError, match=r"n_ctx is 65: .* 64 tokens"):
        AceStep(tmp_path / "b", n_ctx=65)
    with AceStep(tmp_path / "b", n_threads=1) as model:
        assert model.settings.n_ctx == 64


@pytest.mark.parametrize("bundle", [None, 5, b"bundle"])
def test_what_is_no_path_is_no_bundle(bundle: Any) -> None:
    with pytest.raises(UsageError, match="give the path of a folder"):
        AceStep(bundle)


@pytest.mark.parametrize("settings", [{"n_ctx": 0}, {"n_threads": 0}, {"n_batch": 0}, {"type_k": "q9"}])
def test_settings_of_the_context(tiny_bundle: Path, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        AceStep(tiny_bundle, **settings)  # type: ignore[arg-type]


def test_the_default_context_is_the_models(tiny_bundle: Path) -> None:
    with AceStep(tiny_bundle, n_threads=1) as model, pytest.raises(ContextOverflowError) as caught:
        model.generate("word " * 2000)
    assert "holds 512" in str(caught.value)
    assert "--ctx-size" not in str(caught.value)


def test_a_context_no_larger_than_one_question_needs(tmp_path: Path, picture: Path) -> None:
    checkpoint = TinyCheckpoint(max_position_embeddings=8192).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("F32",))
    question = Question("What is this?", [picture], AnswerOptions(max_tokens=24))
    answers = {}
    for first in (None, question):
        with AceStep(tmp_path / "bundle", n_threads=1, first=first) as model:
            answers[model.settings.n_ctx] = model.generate(question).tokens
    small, large = sorted(answers)
    assert 512 < small < 2000 < large == 8192
    assert answers[small] == answers[large]


def test_a_context_as_large_as_one_question_needs(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(max_position_embeddings=16384).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("F32",))
    long = Question("word " * 2000, options=AnswerOptions(max_tokens=3))
    with AceStep(tmp_path / "bundle", n_threads=1, first=long) as model:
        assert 10_000 < model.settings.n_ctx <= 16384
        assert model.generate(long).usage.prompt_tokens > 2000
    with AceStep(tmp_path / "bundle", n_threads=1, first=Question("hello")) as model:
        with pytest.raises(UsageError, match="alone"):
            model.generate(long, max_tokens=5)
        with pytest.raises(UsageError, match="no list"):
            model.generate("hello", "picture.png")


def test_a_bad_picture_is_told_before_the_decoder_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png"):
        AceStep(tiny_bundle, n_threads=1, first=Question("What?", [tmp_path / "bad.png"]))


def test_other_decoders_of_the_bundle(tiny_bundle: Path) -> None:
    with AceStep(tiny_bundle, quant="Q8_0", n_threads=1) as model:
        assert model.info.bits_per_weight < 9
        assert model.generate("hello", max_tokens=3).text
    for quant in ("Q5_K_M", ""):
        with pytest.raises(BundleError, match=f"no decoder '{quant}'"):
            AceStep(tiny_bundle, quant=quant)
    with pytest.raises(UsageError, match="quant is 5"):
        AceStep(tiny_bundle, quant=5)


def test_damaged_bundles(bundle_copy: Path, tmp_path: Path) -> None:
    record = Bundle.read(bundle_copy).decoder()
    path = bundle_copy / record.file
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="half-copied"):
        AceStep(bundle_copy)
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(BundleError, match="not a GGUF"):
        AceStep(bundle_copy)
    path.write_bytes(whole.replace(b"qwen2", b"bloom"))
    with pytest.raises(UnsupportedModelError, match="bloom"):
        AceStep(bundle_copy)
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        AceStep(bundle_copy)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(AceStepError):
            AceStep(folder)


def test_a_bundle_without_a_tower(bundle_copy: Path, picture: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    text_only = replace(
        bundle,
        vision=None,
        image=None,
        prompt=replace(bundle.prompt, image_token=None),
        source=replace(bundle.source, vision_model_type=None),
    )
    text_only.write(bundle_copy)
    with AceStep(bundle_copy, n_threads=1) as model:
        assert model.generate("hello <image>", max_tokens=3).usage.image_tokens == 0
        with pytest.raises(PromptError, match="no vision tower"):
            model.generate("hello", [picture])


def test_a_bundle_without_a_tower_answers_questions_about_text(tmp_path: Path, picture: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("F32",))
    with AceStep(tmp_path / "bundle", n_threads=1, n_ctx=128) as model:
        answer = model.generate("hello", max_tokens=5)
        assert answer.text
        assert answer.usage.image_tokens == 0
        with pytest.raises(PromptError, match="has no vision tower: ask without pictures"):
            model.generate("What is this?", [picture])
        assert model.generate("hello", max_tokens=5).text == answer.text
    facts = facts_and_settings(tmp_path / "bundle")
    assert "none: it answers questions about text only" in table(facts)
    assert (facts["vision"], facts["image"], facts["vision_model_type"]) == ([], None, None)
