"""Answers as data, from random weights that write noise: all that is right is the grammar's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.options import AnswerOptions
from tests.support.schemas import Schema, follows, schemas

SHAPE: Schema = {
    "type": "object",
    "properties": {"shape": {"enum": ["square", "circle"]}, "count": {"type": "integer", "minimum": 0}},
    "required": ["shape", "count"],
}
GREEDY: dict[str, Any] = {}
DRAWN = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7}
PENALIZED = {"repeat_penalty": 1.5}


@pytest.fixture(scope="module", params=["none", "ngram-simple"])
def guessing(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[AceStep]:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=512, spec_type=request.param) as opened:
        yield opened


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas(), options=st.sampled_from([GREEDY, DRAWN, PENALIZED]), sees=st.booleans())
def test_an_answer_validates_or_was_cut(
    guessing: AceStep, picture: Path, schema: Schema, options: dict[str, Any], sees: bool
) -> None:
    asked = AnswerOptions(json_schema=schema, max_tokens=150, **options)
    answer = guessing.generate("What is this?", [picture] if sees else [], asked)
    if answer.finish_reason == "stop":
        assert follows(answer.text, schema), answer.text
    else:
        assert answer.finish_reason == "length"
        assert answer.usage.completion_tokens == 150


@pytest.mark.parametrize("options", [GREEDY, DRAWN, PENALIZED])
def test_data(model: AceStep, picture: Path, options: dict[str, Any]) -> None:
    answer = model.generate("What is this?", [picture], json_schema=SHAPE, max_tokens=100, **options)
    assert answer.finish_reason == "stop"
    assert answer.data["shape"] in ("square", "circle")
    assert answer.data.keys() == {"shape", "count"}


def test_an_answer_that_was_cut_has_no_data(model: AceStep) -> None:
    answer = model.generate("What is this?", json_schema=SHAPE, max_tokens=3)
    assert answer.finish_reason == "length"
    with pytest.raises(DecodeError, match="max_tokens"):
        _ = answer.data


def test_other_answers_are_as_before(model: AceStep) -> None:
    before = model.generate("What is this?", max_tokens=16)
    model.generate("What is this?", json_schema=SHAPE, max_tokens=16)
    assert model.generate("What is this?", max_tokens=16).tokens == before.tokens


def test_a_batch_with_schemas(model: AceStep, picture: Path) -> None:
    options = AnswerOptions(json_schema={"type": "boolean"}, max_tokens=32)
    outcomes = list(model.batch(Question("Is it red?", [picture], options) for _ in range(3)))
    assert [outcome.answer.data in (True, False) for outcome in outcomes if outcome.answer] == [True] * 3


@pytest.fixture(scope="module")
def parallel(tiny_bundle: Path) -> Iterator[AceStep]:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, n_parallel=3) as opened:
        yield opened


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(several=st.lists(schemas(), min_size=3, max_size=5), options=st.sampled_from([GREEDY, DRAWN]))
def test_answers_that_are_written_together(
    parallel: AceStep, picture: Path, several: list[Schema], options: dict[str, Any]
) -> None:
    asked = [
        Question("What is this?", [picture], AnswerOptions(json_schema=schema, max_tokens=100, **options))
        for schema in several
    ]
    answers = {outcome.index: outcome.answer for outcome in parallel.batch(asked)}
    for index, schema in enumerate(several):
        answer = answers[index]
        assert answer is not None
        assert answer.finish_reason == "length" or follows(answer.text, schema), answer.text


def test_stop_strings_would_break_json() -> None:
    with pytest.raises(UsageError, match="stop"):
        AnswerOptions(json_schema=SHAPE, stop=["}"])
