import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from acestep_gguf import AceStep, AnswerOptions, Outcome, Question
from acestep_gguf.errors import ImageError, UsageError
from tests.support.event_loop import run


def check_no_thread_is_left() -> None:
    """The threads of a batch end; by themselves, so that this waits for them."""
    deadline = time.monotonic() + 60
    while left := [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("batch", "vision"))
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.fixture(scope="module", params=[1, 3])
def model(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[AceStep]:
    """Writing one answer at a time, and three."""
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=128, n_parallel=request.param) as opened:
        yield opened


def questions(picture: Path, *lengths: int) -> list[Question]:
    return [Question("What is this?", [picture], AnswerOptions(max_tokens=length)) for length in lengths]


async def in_turn(asked: list[Question]) -> AsyncIterator[Question]:
    for question in asked:
        await asyncio.sleep(0)
        yield question


@pytest.mark.parametrize("is_async", [False, True])
def test_outcomes_are_those_of_batch(model: AceStep, picture: Path, tmp_path: Path, is_async: bool) -> None:
    asked = [*questions(picture, 3, 9, 5), Question("What?", [tmp_path / "none.png"]), Question("Hello")]

    async def main() -> dict[int, Outcome]:
        given = model.abatch(in_turn(asked) if is_async else asked)
        return {outcome.index: outcome async for outcome in given}

    outcomes = run(main())
    expected = {outcome.index: outcome for outcome in model.batch(asked)}
    assert outcomes.keys() == expected.keys() == {0, 1, 2, 3, 4}
    assert isinstance(outcomes[3].error, ImageError)
    for index in (0, 1, 2, 4):
        now, then = outcomes[index].answer, expected[index].answer
        assert now is not None
        assert then is not None
        assert now.tokens == then.tokens
    check_no_thread_is_left()


def test_answers_go_on_while_the_next_question_is_not_there_yet(model: AceStep, picture: Path) -> None:
    async def main() -> int:
        answered = asyncio.Event()

        async def asked() -> AsyncIterator[Question]:
            (question,) = questions(picture, 3)
            yield question
            await answered.wait()  # for ever, if the first answer waited for the second question
            yield question

        n_outcomes = 0
        async for _ in model.abatch(asked()):
            answered.set()
            n_outcomes += 1
        return n_outcomes

    assert run(asyncio.wait_for(main(), 60)) == 2


def test_nothing_is_computed_ahead_of_who_does_not_look(model: AceStep, picture: Path) -> None:
    taken = 0

    def asked() -> Iterator[Question]:
        nonlocal taken
        for question in questions(picture, *[2] * 40):
            taken += 1
            yield question

    async def main() -> None:
        async with aclosing(model.abatch(asked())) as outcomes:
            await anext(outcomes)
            seen = -1
            while seen < taken:  # until it has stopped by itself
                seen = taken
                await asyncio.sleep(0.3)

    run(main())
    assert taken <= 3 + 3 + 2 + 3  # being written, not taken, waiting, and those of the step that waits


@pytest.mark.parametrize("how", ["cancel", "close", "break"])
def test_what_is_left_early_leaves_nothing_behind(model: AceStep, picture: Path, how: str) -> None:
    asked = questions(picture, 2, 90, 90, 90, 90)
    cancelled = False

    async def endless() -> AsyncIterator[Question]:
        nonlocal cancelled
        try:
            for question in asked:
                yield question
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def main() -> None:
        first = asyncio.Event()

        async def consume() -> None:
            async with aclosing(model.abatch(endless())) as outcomes:
                async for _ in outcomes:
                    first.set()
                    if how == "break":
                        break
                    if how == "close":
                        await outcomes.aclose()

        task = asyncio.create_task(consume())
        await first.wait()
        if how == "cancel":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [other for other in asyncio.all_tasks() if other is not asyncio.current_task()] == []

    run(main())
    check_no_thread_is_left()
    assert model.generate(asked[0]).finish_reason == "length"  # its turn is free again


def test_cancelled_before_it_has_begun(model: AceStep, picture: Path) -> None:
    stream = model.stream("Hello", max_tokens=60)
    next(stream)  # holds the turn

    async def main() -> None:
        task = asyncio.ensure_future(anext(model.abatch(questions(picture, 5))))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        stream.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    check_no_thread_is_left()
    assert model.generate("Hello", max_tokens=2).text is not None


def test_an_error_of_the_source_ends_it(model: AceStep, picture: Path) -> None:
    async def asked() -> AsyncIterator[Question]:
        yield questions(picture, 2)[0]
        raise ZeroDivisionError

    async def main() -> None:
        async for _ in model.abatch(asked()):
            pass

    with pytest.raises(ZeroDivisionError):
        run(main())
    check_no_thread_is_left()


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_a_closed_model_is_refused(tiny_bundle: Path, picture: Path, n_parallel: int) -> None:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=128, n_parallel=n_parallel) as closed:
        pass

    async def main() -> None:
        async for _ in closed.abatch(questions(picture, 2)):
            pass

    with pytest.raises(UsageError, match="closed"):
        run(main())
    with pytest.raises(UsageError, match="closed"):
        next(closed.batch(questions(picture, 2)))
