"""Batches without a model: tasks, and outcomes that a test makes up in an order of its own."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from acestep_gguf.answer import Answer, Timings, Usage
from acestep_gguf.batch.tasks import Entry, Task, shown, tasks_of
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import ImageError


def some_tasks(n_tasks: int) -> list[Task]:
    return tasks_of(
        (Entry(f"{number}.png", (Path(f"{number}.png"),)) for number in range(n_tasks)), ["What?"]
    )


def answered(text: str) -> Answer:
    usage = Usage(prompt_tokens=5, image_tokens=4, cached_tokens=0, completion_tokens=2)
    timings = Timings(load_s=9.0, image_s=1.0, prefill_s=1.0, decode_s=0.5, prefill_tokens=5, decode_tokens=2)
    return Answer(text=text, tokens=(1, 2), finish_reason="stop", usage=usage, timings=timings, seed=7)


class Outcomes:
    """Answers to questions, ``at_once`` of them at a time, the last of these first.

    The answer tells what was asked; about a picture with "bad" in its name there is an error.
    """

    def __init__(self, at_once: int = 1, *, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._at_once = at_once
        self._fail_after = fail_after

    def opened(self) -> AbstractContextManager["Outcomes"]:
        return nullcontext(self)

    def batch(self, questions: Iterable[Question]) -> Generator[Outcome, None, None]:
        waiting: list[tuple[int, Question]] = []
        for number, question in enumerate(questions):
            waiting.append((number, question))
            if len(waiting) == self._at_once:
                yield from self._outcomes(waiting)
        yield from self._outcomes(waiting)

    def _outcomes(self, waiting: list[tuple[int, Question]]) -> Iterator[Outcome]:
        while waiting:
            number, question = waiting.pop()
            if self._fail_after is not None and len(self.asked) == self._fail_after:
                raise KeyboardInterrupt
            name = _name(question.pictures)
            self.asked.append(name)
            if "bad" in name:
                yield Outcome(number, error=ImageError(f"{name} is damaged."))
            else:
                yield Outcome(number, answer=answered(f"about {shown(name)}"))


def _name(pictures: Sequence[object]) -> str:
    return Path(str(pictures[0])).name
