import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.batch.run import Batch, Show, Summary
from acestep_gguf.batch.tasks import Entry, Task, shown, tasks_of
from tests.support.batches import Outcomes, some_tasks


@contextmanager
def unwatched(_done: int, _all: int) -> Iterator[Show]:
    yield lambda _: None


def run(folder: Path, tasks: list[Task], outcomes: Outcomes, **options: Any) -> Summary:
    batch = Batch(tasks=tasks, output=folder / "a.jsonl", settings={}, **options)
    return batch.run(outcomes.opened, unwatched)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]


def tasks_about(*names: str) -> list[Task]:
    return tasks_of((Entry(shown(name), (Path(name),)) for name in names), ["What?"])


def test_a_row_has_what_was_asked_and_what_became_of_it(tmp_path: Path) -> None:
    tasks = tasks_of(
        [Entry(7, (Path("x.png"),), "Who?", {"tag": [1]}), Entry("b", (Path("bad.png"),))], ["What?"]
    )
    assert run(tmp_path, tasks, Outcomes()) == Summary(rows=2, errors=1, made_now=2)
    answer, error = rows(tmp_path)
    assert answer == {
        "id": 7,
        "path": "x.png",
        "prompt": "Who?",
        "text": "about x.png",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "image_tokens": 4,
        "completion_tokens": 2,
        "seconds": 2.5,  # without loading
        "seed": 7,
        "error": None,
        "tag": [1],
    }
    assert (error["id"], error["text"], error["error"]) == ("b", None, "bad.png is damaged.")


@settings(max_examples=30, deadline=None)
@given(
    n_tasks=st.integers(1, 8),
    at_once=st.integers(1, 5),
    stops=st.lists(st.integers(0, 8), max_size=4),
)
def test_stopped_anywhere_each_task_is_asked_once_and_the_order_is_kept(
    n_tasks: int, at_once: int, stops: list[int]
) -> None:
    tasks = some_tasks(n_tasks)
    asked: list[str] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for stop in [*stops, None]:
            outcomes = Outcomes(at_once, fail_after=stop)
            try:
                run(folder, tasks, outcomes)
            except KeyboardInterrupt:
                assert not (folder / "a.jsonl").exists()
            asked += outcomes.asked
        assert sorted(asked) == sorted(f"{number}.png" for number in range(n_tasks))
        assert [row["text"] for row in rows(folder)] == [f"about {number}.png" for number in range(n_tasks)]


def test_what_is_done_needs_no_model(tmp_path: Path) -> None:
    run(tmp_path, some_tasks(2), Outcomes())
    again = Outcomes()
    assert run(tmp_path, some_tasks(2), again) == Summary(rows=2, errors=0, made_now=0)
    assert again.asked == []


def test_two_copies_of_a_picture_are_two_rows(tmp_path: Path) -> None:
    outcomes = Outcomes()
    run(tmp_path, tasks_about("a.png", "a.png"), outcomes)
    assert outcomes.asked == ["a.png", "a.png"]
    assert len(rows(tmp_path)) == 2


def test_new_pictures_get_rows_in_their_places_and_those_that_went_lose_theirs(tmp_path: Path) -> None:
    run(tmp_path, tasks_about("b.png", "c.png"), Outcomes())
    outcomes = Outcomes()
    run(tmp_path, tasks_about("a.png", "c.png"), outcomes)
    assert outcomes.asked == ["a.png"]
    assert [row["id"] for row in rows(tmp_path)] == ["a.png", "c.png"]
    # The journal still has it.
    outcomes = Outcomes()
    run(tmp_path, tasks_about("b.png"), outcomes)
    assert outcomes.asked == []


def test_errors_are_asked_again_when_that_is_wanted(tmp_path: Path) -> None:
    tasks = tasks_about("a.png", "bad.png", "c.png")
    run(tmp_path, tasks, Outcomes())
    outcomes = Outcomes()
    assert run(tmp_path, tasks, outcomes).errors == 1
    assert outcomes.asked == []
    run(tmp_path, tasks, outcomes, retry_errors=True)
    assert outcomes.asked == ["bad.png"]
    assert [row["id"] for row in rows(tmp_path)] == ["a.png", "bad.png", "c.png"]


def test_restart_asks_everything_again(tmp_path: Path) -> None:
    run(tmp_path, some_tasks(2), Outcomes())
    outcomes = Outcomes()
    run(tmp_path, some_tasks(2), outcomes, restart=True)
    assert len(outcomes.asked) == 2


@pytest.mark.parametrize("name", ["caf\udce9.png", "a\nb.png"])
def test_names_that_are_no_unicode(tmp_path: Path, name: str) -> None:
    run(tmp_path, tasks_about(name, "bad" + name), Outcomes())
    readable = name.replace("\udce9", "�")
    assert [row["path"] for row in rows(tmp_path)] == [readable, "bad" + readable]
    assert rows(tmp_path)[1]["error"].endswith("is damaged.")
