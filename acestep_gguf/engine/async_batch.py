"""Many questions for a program of asyncio: a thread of its own computes, step by step."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

from acestep_gguf.engine.batch import Outcome, Stepwise, outcomes_of
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.scheduler import Request

Questions = Iterable[Question] | AsyncIterable[Question]
Opened = Callable[[], AbstractContextManager[Stepwise]]


async def answer_all_async(
    opened: Opened, questions: Questions, *, n_untaken: int
) -> AsyncGenerator[Outcome, None]:
    """Outcomes as they come; the next are computed while one is looked at.

    Args:
        opened: what answers; entered and left in the thread.
        questions: one is taken when there is room for it, in the event loop.
        n_untaken: when so many outcomes have not been taken, nothing is computed until one is.
    """
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
    room = asyncio.Semaphore(n_untaken)

    async def put(outcome: Outcome) -> None:
        await room.acquire()
        outcomes.put_nowait(outcome)

    work = asyncio.create_task(_work(opened, questions, put))
    work.add_done_callback(lambda _: outcomes.put_nowait(None))
    try:
        while (outcome := await outcomes.get()) is not None:
            room.release()
            yield outcome
        await work  # raises what ended it
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _work(opened: Opened, questions: Questions, put: Callable[[Outcome], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
    resources = ExitStack()
    source = _each(questions)
    coming: asyncio.Future[Question | None] | None = None  # the next question
    is_exhausted = False
    n_taken = 0
    indices: dict[Request, int] = {}
    stepwise: Stepwise | None = None
    try:
        stepwise = await loop.run_in_executor(thread, resources.enter_context, opened())
        while True:
            if coming is None and stepwise.has_room and not is_exhausted:
                coming = asyncio.ensure_future(anext(source, None))
                await asyncio.sleep(0)  # it may be there at once
            if coming is not None and (coming.done() or stepwise.is_idle):
                question, coming = await coming, None
                if question is None:
                    is_exhausted = True
                else:
                    indices[stepwise.submit(question)] = n_taken
                    n_taken += 1
            elif stepwise.is_idle:
                return
            else:
                events = await loop.run_in_executor(thread, stepwise.step)
                for outcome in outcomes_of(events, indices):
                    await put(outcome)
    finally:
        if stepwise is not None:
            stepwise.stop()
        # In the thread, after the step that was stopped, even if this task is cancelled again meanwhile.
        left = thread.submit(resources.close)
        thread.shutdown(wait=False)
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await source.aclose()
        await asyncio.shield(asyncio.wrap_future(left))


async def _each(questions: Questions) -> AsyncGenerator[Question, None]:
    if not isinstance(questions, AsyncIterable):
        for question in questions:
            yield question
        return
    try:
        async for question in questions:
            yield question
    finally:
        if isinstance(questions, AsyncGenerator):  # nobody else can wait until it is
            await questions.aclose()
