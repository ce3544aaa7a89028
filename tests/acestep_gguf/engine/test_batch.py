import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf import AceStep, AnswerOptions, Outcome, Question
from acestep_gguf.errors import ImageError, UsageError
from acestep_gguf.prompt.messages import user_message


def test_outcomes_are_the_answers_of_single_questions(model: AceStep, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    few = AnswerOptions(max_tokens=5)
    questions = [
        Question("What is this?", [picture], few),
        Question("What is this?", [tmp_path / "bad.png"], few),
        Question("Hello", options=few),
    ]
    outcomes = {outcome.index: outcome for outcome in model.batch(iter(questions))}
    assert sorted(outcomes) == [0, 1, 2]
    assert isinstance(outcomes[1].error, ImageError)
    for index in (0, 2):
        answer = outcomes[index].answer
        assert answer is not None
        assert answer.tokens == model.generate(questions[index]).tokens


def test_several_at_a_time_are_the_answers_of_single_questions(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = []
    for number in range(6):
        pictures.append(tmp_path / f"{number}.png")
        Image.open(picture).rotate(50 * number).save(pictures[-1])
    questions = [
        Question(text, [image], AnswerOptions(max_tokens=n, temperature=t, seed=n))
        for n, (text, image) in enumerate(product(("What is this?", "Which colour is it?"), pictures), 3)
        for t in (0.0, 1.0)
    ]
    questions.insert(5, Question("What?", [tmp_path / "bad.png"]))
    questions.insert(9, Question("word " * 300))
    questions.insert(11, Question("Hello", options=AnswerOptions(max_tokens=10_000)))
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=128, n_parallel=4) as model:
        taken: list[int] = []

        def asked() -> Iterator[Question]:
            for index, question in enumerate(questions):
                taken.append(index)
                yield question

        outcomes: dict[int, Outcome] = {}
        for outcome in model.batch(asked()):
            outcomes[outcome.index] = outcome
            assert len(taken) - len(outcomes) <= 4 + 2 + 1  # places, what waits, and what was just taken
        assert sorted(outcomes) == list(range(len(questions)))
        for index, question in enumerate(questions):
            outcome = outcomes[index]
            if outcome.error is not None:
                with pytest.raises(type(outcome.error), match=re.escape(str(outcome.error))):
                    model.generate(question)
                continue
            alone = model.generate(question)
            assert outcome.answer is not None
            assert outcome.answer.tokens == alone.tokens
            assert outcome.answer.text == alone.text
            assert outcome.answer.finish_reason == alone.finish_reason
            assert outcome.answer.usage.prompt_tokens == alone.usage.prompt_tokens


def test_what_prompts_share_is_read_once(tiny_bundle: Path, picture: Path) -> None:
    few = AnswerOptions(max_tokens=3)
    system = {"role": "system", "content": "word " * 40}
    questions = [
        Question([system, user_message(text, [picture])], options=few)
        for text in ("What is this?", "Which colour?", "How many?", "Where?")
    ]
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, n_parallel=2) as model:
        answers = [outcome.answer for outcome in model.batch(questions)]
    cached = [answer.usage.cached_tokens for answer in answers if answer is not None]
    assert cached[0] == 0
    assert min(cached[1:]) > 40


def test_a_batch_that_is_left_leaves_the_model_usable(tiny_bundle: Path, picture: Path) -> None:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=128, n_parallel=3) as model:
        questions = [Question("What is this?", [picture], AnswerOptions(max_tokens=n)) for n in (3, 60, 60)]
        outcomes = model.batch(questions)
        first = next(outcomes)
        outcomes.close()
        assert first.answer is not None
        assert first.answer.tokens == model.generate(questions[0]).tokens
        assert len(list(model.batch(questions))) == 3
    with pytest.raises(UsageError, match="closed"):
        next(model.batch(questions))
