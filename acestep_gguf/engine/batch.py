"""Many questions, answered as they come; one that fails does not end the others."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Protocol

from acestep_gguf.answer import Answer, Chunk
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.scheduler import Event, Request
from acestep_gguf.errors import AceStepError, BundleError
from acestep_gguf.llama.backend import Interrupted


@dataclass(frozen=True)
class Outcome:
    """What became of the question with this number, counted from 0: an answer or an error."""

    index: int
    answer: Answer | None = None
    error: AceStepError | None = None


class Stepwise(Protocol):
    """What answers step by step: a ``Scheduler``, whose words these are, or ``OneAtATime``."""

    @property
    def has_room(self) -> bool: ...

    @property
    def is_idle(self) -> bool: ...

    def submit(self, question: Question) -> Request: ...

    def step(self) -> list[Event]: ...

    def stop(self) -> None: ...


class OneAtATime:
    """Answers questions one after another: a step is a whole answer.

    Args:
        stream: the chunks of an answer.
        cancel: ends the answer that is being written; any thread may.
    """

    def __init__(
        self, stream: Callable[[Question], Generator[Chunk, None, None]], cancel: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._cancel = cancel
        self._waiting: Request | None = None
        self._is_stopped = False

    @property
    def has_room(self) -> bool:
        """Whether another question may be submitted."""
        return self._waiting is None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._waiting is None

    def submit(self, question: Question) -> Request:
        """Make this question the next one."""
        self._waiting = Request(question)
        return self._waiting

    def step(self) -> list[Event]:
        """Answer the question.

        Raises:
            Interrupted: ``stop`` was called.
        """
        request, self._waiting = self._waiting, None
        if request is None:
            return []
        last: list[Event] = []
        try:
            with closing(self._stream(request.question)) as chunks:
                for chunk in chunks:
                    if self._is_stopped:
                        raise Interrupted
                    last = [(request, chunk)]
        except AceStepError as error:
            return [(request, error)]
        return last

    def stop(self) -> None:
        """End the answer that is being written, without an event; any thread may."""
        self._is_stopped = True
        self._cancel()


def answer_all(stepwise: Stepwise, questions: Iterable[Question]) -> Generator[Outcome, None, None]:
    """Outcomes as they come; a question is taken when there is room for it."""
    source = enumerate(questions)
    indices: dict[Request, int] = {}
    is_exhausted = False
    with suppress(Interrupted):
        while not (is_exhausted and stepwise.is_idle):
            while stepwise.has_room and not is_exhausted:
                index, question = next(source, (-1, None))
                if question is None:
                    is_exhausted = True
                else:
                    indices[stepwise.submit(question)] = index
            yield from outcomes_of(stepwise.step(), indices)


def outcomes_of(events: Iterable[Event], indices: dict[Request, int]) -> Iterator[Outcome]:
    """The outcomes among ``events``, whose requests are taken out of ``indices``.

    Raises:
        BundleError: of one of them; all others would have it, too.
    """
    for request, what in events:
        if isinstance(what, BundleError):
            raise what
        if isinstance(what, AceStepError):
            yield Outcome(indices.pop(request), error=what)
        elif what.answer is not None:
            yield Outcome(indices.pop(request), answer=what.answer)
