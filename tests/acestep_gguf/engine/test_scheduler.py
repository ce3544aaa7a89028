from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf import AceStep, AnswerOptions, Question
from acestep_gguf.answer import Answer
from acestep_gguf.engine.scheduler import Request, Scheduler
from acestep_gguf.errors import QueueFullError

LONG = "word " * 60


@pytest.fixture
def model(tiny_bundle: Path) -> Iterator[AceStep]:
    """One that reads in calls of 16 positions."""
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, n_batch=16, n_parallel=3) as model:
        yield model


def asked(text: str, n: int, *pictures: Path) -> Question:
    return Question(text, list(pictures), AnswerOptions(max_tokens=n))


def answers(scheduler: Scheduler) -> dict[Request, Answer]:
    """Answers of all that was submitted."""
    done = {}
    while not scheduler.is_idle:
        for request, what in scheduler.step():
            assert not isinstance(what, Exception)
            if what.answer is not None:
                done[request] = what.answer
    return done


@pytest.mark.parametrize("interleave", [False, True])
def test_an_answer_halts_for_one_call_where_reading_and_writing_take_turns(
    model: AceStep, interleave: bool
) -> None:
    with model.scheduler(n_waiting=2, interleave=interleave) as scheduler:
        first = scheduler.submit(asked("Hello", 40))
        while not scheduler.step():
            pass
        second = scheduler.submit(asked(LONG, 2))
        written = 0  # pieces of the first while the second is read
        while second not in (told := {request for request, _ in scheduler.step()}):
            written += first in told
        assert written == 0 if not interleave else written > 2
        together = answers(scheduler)
    assert together[first].tokens == model.generate(asked("Hello", 40)).tokens
    assert together[second].tokens == model.generate(asked(LONG, 2)).tokens


def test_what_is_cancelled_while_it_is_read_gives_its_place_back(model: AceStep, picture: Path) -> None:
    other = model.generate(asked("What is this?", 4, picture))
    with model.scheduler(n_waiting=4) as scheduler:
        request = scheduler.submit(asked(LONG, 5))
        assert scheduler.step() == []  # it has begun to read
        scheduler.cancel(request)
        ((ended, chunk),) = scheduler.step()
        assert ended is request
        assert not isinstance(chunk, Exception)
        assert chunk.answer is not None
        assert chunk.answer.finish_reason == "cancelled"
        assert chunk.answer.tokens == ()
        assert scheduler.is_idle
        together = [scheduler.submit(asked("What is this?", 4, picture)) for _ in range(3)]
        done = answers(scheduler)
    assert [done[request].tokens for request in together] == [other.tokens] * 3


def test_a_full_queue_refuses(model: AceStep, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    with model.scheduler(n_waiting=2) as scheduler:
        for _ in range(2):
            scheduler.submit(asked("Hello", 3, tmp_path / "red.png"))
        assert not scheduler.has_room
        with pytest.raises(QueueFullError, match="2 questions wait"):
            scheduler.submit(asked("Hello", 3))
        assert len(answers(scheduler)) == 2


@pytest.mark.parametrize("encode_ahead", [False, True])
def test_pictures_are_encoded_before_their_turn_or_when_it_comes(
    model: AceStep, picture: Path, tmp_path: Path, encode_ahead: bool
) -> None:
    pictures = []
    for number in range(5):
        pictures.append(tmp_path / f"{number}.png")
        Image.open(picture).rotate(50 * number).save(pictures[-1])
    questions = [asked("What is this?", 6, path) for path in pictures]
    alone = [model.generate(question).tokens for question in questions]
    with model.scheduler(n_waiting=5, encode_ahead=encode_ahead) as scheduler:
        requests = [scheduler.submit(question) for question in questions]
        assert [request.prepared is not None for request in requests[:2]] == [encode_ahead] * 2
        done = answers(scheduler)
    assert [done[request].tokens for request in requests] == alone
