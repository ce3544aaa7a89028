from pathlib import Path

import numpy as np
import pytest

from acestep_gguf import AceStep, AnswerOptions, Question
from acestep_gguf.answer import Chunk, TokenLogprob
from acestep_gguf.engine.logprobs import Logprobs
from acestep_gguf.errors import AceStepError


def of(model: AceStep, question: Question, n_logprobs: int | None) -> tuple[list[Chunk], list[TokenLogprob]]:
    chunks: list[Chunk] = []
    with model.scheduler(n_waiting=1) as scheduler:
        scheduler.submit(question, n_logprobs=n_logprobs)
        while not scheduler.is_idle:
            for _, what in scheduler.step():
                assert not isinstance(what, AceStepError)
                chunks.append(what)
    return chunks, [logprob for chunk in chunks for logprob in chunk.logprobs]


def test_they_are_those_of_the_softmax() -> None:
    logits = np.array([1.0, 3.0, -np.inf, 2.0, 0.0], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    ranked = Logprobs(logits, 3, lambda token: b"abcde"[token : token + 1]).of(4, float(logits[4]))
    assert [token.bytes for token in ranked.top] == [b"b", b"d", b"a"]
    assert np.exp(ranked.chosen.logprob) == pytest.approx(probabilities[4])
    assert np.exp([token.logprob for token in ranked.top]) == pytest.approx(probabilities[[1, 3, 0]])


@pytest.mark.parametrize("json_schema", [None, {"type": "object"}])
def test_each_token_of_an_answer_has_one(
    model: AceStep, picture: Path, json_schema: dict[str, str] | None
) -> None:
    question = Question("What?", [picture], AnswerOptions(max_tokens=6, json_schema=json_schema))
    chunks, found = of(model, question, 4)
    answer = chunks[-1].answer
    assert answer is not None
    assert tuple(one.chosen.token for one in found) == answer.tokens
    assert b"".join(one.chosen.bytes for one in found).decode(errors="replace") == answer.text
    for one in found:
        logprobs = [token.logprob for token in one.top]
        assert len(one.top) == 4
        assert logprobs == sorted(logprobs, reverse=True)
        assert one.chosen.logprob <= logprobs[0] <= 0
        if json_schema is None:  # greedy takes the first
            assert one.top[0] == one.chosen


def test_without_being_asked_for_there_are_none(model: AceStep, picture: Path) -> None:
    question = Question("What?", [picture], AnswerOptions(max_tokens=3))
    assert of(model, question, None)[1] == []
    assert [one.top for one in of(model, question, 0)[1]] == [()] * 3
