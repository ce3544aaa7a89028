"""A loaded bundle with a thread of its own: questions come from the event loop, chunks go back to it.

The thread drives the scheduler. All else here belongs to the event loop.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from time import monotonic, perf_counter
from typing import Final

from acestep_gguf.answer import Answer, Chunk
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.scheduler import Request, Scheduler
from acestep_gguf.errors import AceStepError
from acestep_gguf.options import EngineOptions
from acestep_gguf.server.errors import ApiError, api_error, internal_error, log_failure

MOST_RETRY_AFTER_S: Final = 60
# How much of the mean time of an answer the last one makes.
LAST_ANSWER_SHARE: Final = 0.2

# A chunk of the answer with this number.
Numbered = tuple[int, Chunk]


class Answers:
    """The answers to the questions of one request, while they are written."""

    def __init__(self, questions: Sequence[Question], n_logprobs: int | None) -> None:
        self.questions = questions
        self.n_logprobs = n_logprobs
        self.is_cancelled = False
        self.requests: list[Request] = []
        self.began = monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Numbered | Exception] = asyncio.Queue()

    def give(self, event: Numbered | Exception) -> None:
        """Hand on what came of a question; any thread may."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, and nobody waits
            return

    async def chunks(self, *, timeout_s: float) -> AsyncGenerator[Numbered, None]:
        """Chunks as they come, until each answer has had its last; after ``timeout_s`` all are cut.

        Raises:
            ApiError: one of them failed.
        """
        timer = self._loop.call_later(timeout_s, self.cancel)
        missing = len(self.questions)
        try:
            while missing:
                event = await self._events.get()
                if isinstance(event, ApiError):
                    raise event
                if isinstance(event, AceStepError):
                    raise api_error(event) from event
                if isinstance(event, Exception):
                    raise internal_error() from event
                yield event
                missing -= event[1].answer is not None
        finally:
            timer.cancel()
            self.cancel()

    def cancel(self) -> None:
        """End them: what is written so far is their text."""
        self.is_cancelled = True
        for request in self.requests:
            request.is_cancelled = True


class ModelThread:
    """A bundle that is loaded, or will be soon.

    Args:
        folder: of the bundle.
        options: how it is loaded.
        queue: answers that wait for a place, at most.
        count: gets each answer that has ended, in the model's thread.
    """

    def __init__(
        self, folder: Path, options: EngineOptions, *, queue: int, count: Callable[[Answer], None]
    ) -> None:
        self._folder = folder
        self._options = options
        self._queue = queue
        self._count = count
        self._inbox: SimpleQueue[Answers | None] = SimpleQueue()
        self._loaded: Future[AceStep] = Future()
        self._open: dict[Request, tuple[Answers, int]] = {}  # the thread's
        self._load_s = 0.0
        self._answer_s = 1.0
        self.n_users = 0
        self.answers: set[Answers] = set()
        self._thread = threading.Thread(target=self._run, name=f"model {folder.name}", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether it has to be made anew."""
        return not self._thread.is_alive()

    @property
    def n_open(self) -> int:
        """Answers that are written, or wait."""
        return sum(len(answers.questions) for answers in self.answers)

    async def model(self) -> AceStep:
        """The model, when it is loaded.

        Raises:
            AceStepError: it cannot be.
        """
        return await asyncio.shield(asyncio.wrap_future(self._loaded))  # others may wait for it, too

    async def ask(
        self, questions: Sequence[Question], n_logprobs: int | None, *, timeout_s: float
    ) -> AsyncGenerator[Numbered, None]:
        """Chunks of the answers, each with the number of its question.

        Raises:
            ApiError: too many wait already, or one of them failed.
        """
        model = await self.model()
        n_places = model.settings.n_seq_max
        if self.n_open + len(questions) > n_places + self._queue:
            wait = ceil(self._answer_s * (self.n_open + 1) / n_places)
            raise ApiError(
                429,
                "as many questions wait as may: ask again later.",
                code="queue_full",
                retry_after=max(1, min(wait, MOST_RETRY_AFTER_S)),
            )
        answers = Answers(questions, n_logprobs)
        self.answers.add(answers)
        self._inbox.put(answers)
        chunks = answers.chunks(timeout_s=timeout_s)
        try:
            async for numbered in chunks:
                yield numbered
        finally:
            await chunks.aclose()
            self.answers.discard(answers)
            self._answer_s += LAST_ANSWER_SHARE * (monotonic() - answers.began - self._answer_s)

    def cancel_all(self) -> None:
        """Cut all answers."""
        for answers in self.answers:
            answers.cancel()

    async def close(self) -> None:
        """Free the model, when its answers have ended."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        began = perf_counter()
        try:
            model = AceStep(self._folder, self._options)
        except Exception as error:  # noqa: BLE001 (raised where somebody waits for the model)
            self._loaded.set_exception(error)
            return
        self._load_s = perf_counter() - began
        try:
            n_waiting = model.settings.n_seq_max + self._queue
            with model, model.scheduler(n_waiting=n_waiting, interleave=True) as scheduler:
                self._loaded.set_result(model)
                self._answer(scheduler)
        except Exception as error:  # noqa: BLE001 (whatever it is, the others' requests must not hang)
            log_failure(error)
        finally:
            self._fail_all()

    def _answer(self, scheduler: Scheduler) -> None:
        """Take what was asked, and do a step, for as long as there is something to do."""
        is_closing = False
        while not (is_closing and scheduler.is_idle):
            while not self._inbox.empty() or (scheduler.is_idle and not is_closing):
                answers = self._inbox.get()
                if answers is None:
                    is_closing = True
                else:
                    self._submit(scheduler, answers)
            for request, what in scheduler.step():
                self._give(request, what)

    def _submit(self, scheduler: Scheduler, answers: Answers) -> None:
        for number, question in enumerate(answers.questions):
            request = scheduler.submit(question, n_logprobs=answers.n_logprobs)
            self._open[request] = answers, number
            answers.requests.append(request)
        if answers.is_cancelled:  # meanwhile
            answers.cancel()

    def _give(self, request: Request, what: Chunk | AceStepError) -> None:
        answers, number = self._open[request]
        if isinstance(what, AceStepError):
            if api_error(what).status_code >= 500:
                log_failure(what)
            answers.give(what)
        else:
            if what.answer is not None and self._load_s:
                timings = replace(what.answer.timings, load_s=self._load_s)
                what = replace(what, answer=replace(what.answer, timings=timings))
                self._load_s = 0.0
            if what.answer is not None:
                self._count(what.answer)
            answers.give((number, what))
        if isinstance(what, AceStepError) or what.answer is not None:
            del self._open[request]

    def _fail_all(self) -> None:
        for answers, _ in self._open.values():
            answers.give(internal_error())
        while not self._inbox.empty():
            if (unread := self._inbox.get()) is not None:
                unread.give(internal_error())
