import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.batch.journal import Journal
from acestep_gguf.batch.rows import Row, row_of
from acestep_gguf.batch.tasks import Task
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.errors import BatchError, ImageError
from tests.support.batches import answered, some_tasks

SETTINGS = {"seed": None, "prompt": ["What?"], "temperature": 0.0}
TASKS = some_tasks(5)


def row(task: Task, text: str | None = None) -> Row:
    text = f"Größe:\n{task.id}" if text is None else text
    return row_of(task, Outcome(0, answer=answered(text)))


def error_row(task: Task) -> Row:
    return row_of(task, Outcome(0, error=ImageError(f"{task.id} is damaged.")))


def journal(folder: Path, *, restart: bool = False, **changes: object) -> Journal:
    return Journal(folder / "a.jsonl", {**SETTINGS, **changes}, restart=restart)


def test_rows_are_there_again(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(TASKS[3], row(TASKS[3]))
        first.append(TASKS[1], error_row(TASKS[1]))
        assert first.row(TASKS[3]) == row(TASKS[3])
    with journal(tmp_path) as again:
        assert [task in again for task in TASKS] == [False, True, False, True, False]
        assert [again.is_error(task) for task in TASKS] == [False, True, False, False, False]
        assert again.row(TASKS[3]) == row(TASKS[3])
        assert again.row(TASKS[1]) == error_row(TASKS[1])
        again.append(TASKS[1], row(TASKS[1]))
    with journal(tmp_path) as third:
        assert third.row(TASKS[1]) == row(TASKS[1])
        assert not third.is_error(TASKS[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=4))
def test_cut_off_anywhere_it_goes_on_with_whole_rows(cuts: list[int]) -> None:
    """As after a kill, a power failure or a full disk, again and again."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "a.jsonl.journal"
        for cut in [*cuts, None]:
            with journal(folder) as opened:
                missing = [task for task in TASKS if task not in opened]
                for task in TASKS:
                    if task in opened:
                        assert opened.row(task) == row(task)
                for task in missing:
                    opened.append(task, row(task))
            content = path.read_bytes()
            assert content.count(b"\n") == 1 + len(TASKS)  # each row once
            path.write_bytes(content[:cut])


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 600))
def test_damaged_anywhere_a_task_has_its_row_or_none(where: float, n_bytes: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "a.jsonl.journal"
        with journal(folder) as opened:
            for task in TASKS:
                opened.append(task, row(task))
        content = bytearray(path.read_bytes())
        end_of_header = content.index(b"\n") + 1
        at = end_of_header + int(where * (len(content) - end_of_header))
        content[at : at + n_bytes] = bytes(len(content[at : at + n_bytes]))  # as file systems leave it
        path.write_bytes(content)
        with journal(folder) as opened:
            whole = [task for task in TASKS if task in opened]
            assert all(opened.row(task) == row(task) for task in whole)
            assert len(whole) < len(TASKS)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"batch":', b'{"batch":1,"settings":{"se'])
def test_a_torn_first_line_is_no_beginning(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.jsonl.journal").write_bytes(damage)
    with journal(tmp_path) as opened:
        opened.append(TASKS[0], row(TASKS[0]))
    with journal(tmp_path) as opened:
        assert TASKS[0] in opened


@pytest.mark.parametrize(
    "content", [b"my diary", b"my diary\n", b'{"batch":2,"settings":{}}\n', b"\n", b"\0" * 99]
)
def test_what_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.journal"
    path.write_bytes(content)
    with pytest.raises(BatchError, match="not the journal"):
        journal(tmp_path)
    assert path.read_bytes() == content
    journal(tmp_path, restart=True).__exit__()
    journal(tmp_path).__exit__()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    journal(tmp_path).__exit__()
    with pytest.raises(BatchError, match=r"another prompt, seed: .*restart=True") as caught:
        journal(tmp_path, seed=7, prompt=["Who?"])
    assert caught.value.settings == ("output", "restart", "prompt", "seed")
    with journal(tmp_path, seed=7, restart=True) as anew:
        anew.append(TASKS[0], row(TASKS[0]))
    with journal(tmp_path, seed=7) as opened:
        assert TASKS[0] in opened


def test_restart_forgets_rows_and_table(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(TASKS[0], row(TASKS[0]))
    (tmp_path / "a.jsonl").write_bytes(b"old")
    with journal(tmp_path, restart=True) as opened:
        assert TASKS[0] not in opened
    assert not (tmp_path / "a.jsonl").exists()


def test_a_table_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"mine")
    for restart in (False, True):
        with pytest.raises(BatchError, match="no batch made it"):
            journal(tmp_path, restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_runs_into_one_table(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(TASKS[0], row(TASKS[0]))
        for restart in (False, True):
            with pytest.raises(BatchError, match="another process writes"):
                journal(tmp_path, restart=restart)
        assert opened.row(TASKS[0]) == row(TASKS[0])
    journal(tmp_path).__exit__()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="cannot be written"):
        journal(tmp_path / "missing")


FILL = """
import resource, signal, sys
from pathlib import Path
from acestep_gguf.errors import BatchError
from tests.acestep_gguf.batch.test_journal import TASKS, journal, row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails, as on a full disk
folder = Path(sys.argv[1])
with journal(folder) as opened:
    opened.append(TASKS[0], row(TASKS[0]))
    full = (folder / "a.jsonl.journal").stat().st_size + 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
    try:
        opened.append(TASKS[1], row(TASKS[1]))
    except BatchError as error:
        print(error)
    assert TASKS[1] not in opened
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    opened.append(TASKS[2], row(TASKS[2]))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert "make room" in done.stdout
    with journal(tmp_path) as opened:
        assert [task in opened for task in TASKS[:3]] == [True, False, True]
        assert opened.row(TASKS[2]) == row(TASKS[2])
