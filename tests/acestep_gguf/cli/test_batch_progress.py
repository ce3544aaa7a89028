import io
from pathlib import Path

import pytest
from rich.console import Console

from acestep_gguf.batch.rows import Row
from acestep_gguf.batch.run import Summary
from acestep_gguf.cli import batch_progress
from acestep_gguf.cli.batch_progress import BatchProgress

ANSWER = Row(id="a.png", path="a.png", prompt="What?", text="A dog.")
ERROR = Row(id="b\x1b[2J.png", path="b.png", prompt="What?", error="b.png is damaged.")


class Clock:
    """Twenty seconds pass with each row."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batch_progress, "monotonic", clock)
    return clock


def shown(clock: Clock, rows: list[Row], *, is_terminal: bool = False, n_done: int = 0) -> str:
    file = io.StringIO()
    progress = BatchProgress(Path("a.csv"), Console(file=file, force_terminal=is_terminal, width=100))
    with progress.watching(n_done, n_done + 10) as show:
        for row in rows:
            clock.now += 20
            show(row)
    progress.finish(Summary(rows=10, errors=rows.count(ERROR), made_now=len(rows)))
    return file.getvalue()


def test_a_line_a_minute(clock: Clock) -> None:
    lines = shown(clock, [ANSWER] * 7, n_done=4).splitlines()
    assert lines == [
        "4 of 14 rows were there already",
        "7 of 14, 3.0 a minute, 2 min left, errors 0",
        "10 of 14, 3.0 a minute, 1 min left, errors 0",
        "a.csv is written: rows 10, answers 10, errors 0 (made now: 7, 3.0 a minute)",
    ]


def test_the_first_error_is_told_at_once_and_commands_no_terminal(clock: Clock) -> None:
    lines = shown(clock, [ERROR, ANSWER, ERROR]).splitlines()
    assert lines[0] == "b?[2J.png: b.png is damaged. (The table has all errors.)"
    assert lines[1].endswith("errors 2")
    assert lines[-2:] == [
        "a.csv is written: rows 10, answers 8, errors 2 (made now: 3, 3.0 a minute)",
        "--retry-errors asks those again",
    ]


def test_a_terminal_gets_no_lines_of_progress(clock: Clock) -> None:
    text = shown(clock, [ANSWER] * 7, is_terminal=True)
    assert "min left" not in text
    assert "7/10" in text
