"""Many questions, answered as they come; one that fails does not end the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from acestep_gguf.answer import Answer
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import AceStepError


@dataclass(frozen=True)
class Outcome:
    """What became of the question with this number, counted from 0: an answer or an error."""

    index: int
    answer: Answer | None = None
    error: AceStepError | None = None


def one_by_one(questions: Iterable[Question], ask: Callable[[Question], Answer]) -> Iterator[Outcome]:
    """Outcomes in the order of the questions, each of which is taken when the one before it is answered."""
    for index, question in enumerate(questions):
        try:
            yield Outcome(index, answer=ask(question))
        except AceStepError as error:
            yield Outcome(index, error=error)
