"""Likelihoods of texts, beside the log probabilities of tokens that an answer has."""

from pathlib import Path

import numpy as np
import pytest

from acestep_gguf import AceStep, AnswerOptions, Question
from acestep_gguf.engine.likelihood import log_probability
from acestep_gguf.errors import AceStepError, ContextOverflowError, PromptError, UsageError


def written(model: AceStep, question: Question) -> tuple[list[int], list[float]]:
    """The tokens of an answer and their log probabilities, as a server gives them."""
    found = []
    with model.scheduler(n_waiting=1) as scheduler:
        scheduler.submit(question, n_logprobs=0)
        while not scheduler.is_idle:
            for _, what in scheduler.step():
                assert not isinstance(what, AceStepError)
                found += [one.chosen for one in what.logprobs]
    return [one.token for one in found], [one.logprob for one in found]


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_they_are_those_that_an_answer_of_this_text_is_written_with(
    tiny_bundle: Path, picture: Path, n_parallel: int
) -> None:
    text = "zqxzq"  # of letters that no token has together: there is one way to write it
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, n_parallel=n_parallel) as model:
        question = Question("What is this?", [picture], AnswerOptions(grammar=f'root ::= "{text}"'))
        tokens, logprobs = written(model, question)
        found, longer, again = model.likelihoods(question, [text, f"{text} two", text])
        assert found.tokens == tuple(tokens) == longer.tokens[:5]
        assert found.logprobs == pytest.approx(logprobs, abs=1e-3)
        assert longer.logprobs[:5] == pytest.approx(logprobs, abs=1e-3)
        assert again == found
        assert (longer.sum, found.mean) == (sum(longer.logprobs), sum(found.logprobs) / 5)
        # Neither leaves anything behind for the other.
        assert written(model, question) == (tokens, logprobs)


def test_they_do_not_depend_on_what_was_asked_before(model: AceStep, picture: Path) -> None:
    texts = [" a circle", " two", " a circle and more"]
    question = Question("What is this?", [picture])
    first = model.likelihoods(question, texts)
    model.generate("Something else?")
    model.cancel()
    assert model.likelihoods(question, texts) == first
    assert model.likelihoods(question, texts[2:]) == first[2:]
    assert all(len(one.tokens) == len(one.logprobs) for one in first)


def test_what_an_answer_may_begin_with_is_certain_to_be_one_of_all_tokens() -> None:
    logits = np.random.default_rng(1).normal(size=50).astype(np.float32) * 100
    total = sum(np.exp(log_probability(logits, token)) for token in range(50))
    assert total == pytest.approx(1, abs=1e-12)


def test_a_control_token_in_a_text_is_none(model: AceStep) -> None:
    (found,) = model.likelihoods("What?", ["<|im_end|>"])
    assert len(found.tokens) > 1


@pytest.mark.parametrize(("text", "error"), [("", PromptError), ("word " * 300, ContextOverflowError)])
def test_texts_that_have_no_likelihood(model: AceStep, text: str, error: type[AceStepError]) -> None:
    with pytest.raises(error):
        model.likelihoods(Question("What?"), ["good", text])
    assert model.generate("What?", max_tokens=1).text is not None


def test_a_closed_model(tiny_bundle: Path) -> None:
    model = AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256)
    model.close()
    with pytest.raises(UsageError):
        model.likelihoods(Question("What?"), ["a"])
