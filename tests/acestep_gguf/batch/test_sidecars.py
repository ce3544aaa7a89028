import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.batch.run import Batch
from acestep_gguf.batch.sidecars import SidecarKind
from acestep_gguf.batch.tasks import Entry, Task, tasks_of
from acestep_gguf.errors import BatchError
from tests.acestep_gguf.batch.test_run import unwatched
from tests.support.batches import Outcomes


def tasks_in(folder: Path, *names: str, prompts: tuple[str, ...] = ("What?",)) -> list[Task]:
    return tasks_of((Entry(name, (folder / name,), None, {"tag": 1}) for name in names), prompts)


def run(folder: Path, tasks: list[Task], kind: SidecarKind = "txt", **options: Any) -> None:
    batch = Batch(tasks=tasks, output=folder / "a.jsonl", settings={}, sidecar=kind, **options)
    batch.run(Outcomes().opened, unwatched)


def test_answers_lie_beside_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    run(tmp_path, tasks_in(tmp_path, "a.b.jpg", "sub/c.png", "bad.png"))
    assert (tmp_path / "a.b.txt").read_text() == "about a.b.jpg\n"
    assert (tmp_path / "sub/c.txt").read_text() == "about c.png\n"
    assert not (tmp_path / "bad.txt").exists()


def test_each_page_of_a_pdf_has_its_own(tmp_path: Path) -> None:
    run(tmp_path, tasks_in(tmp_path, "scan.pdf#page=1", "scan.pdf#page=2", "scan.png"))
    assert (tmp_path / "scan-page2.txt").read_text() == "about scan.pdf#page=2\n"
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [
        "scan-page1.txt",
        "scan-page2.txt",
        "scan.txt",
    ]


def test_as_json_they_are_rows(tmp_path: Path) -> None:
    run(tmp_path, tasks_in(tmp_path, "a.jpg"), "json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert json.loads((tmp_path / "a.json").read_bytes())["tag"] == 1


def test_those_that_a_kill_left_out_are_written_later(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, "a.jpg", "b.jpg", "bad.png")
    run(tmp_path, tasks)
    (tmp_path / "a.txt").unlink()
    (tmp_path / ".a.txt.0123abcd.partial").write_text("about")
    (tmp_path / ".others.txt.0123abcd.partial").write_text("another program's")
    (tmp_path / "b.txt").write_text("corrected by hand")
    run(tmp_path, tasks)
    assert (tmp_path / "a.txt").read_text() == "about a.jpg\n"
    assert (tmp_path / "b.txt").read_text() == "corrected by hand"
    assert [path.name for path in tmp_path.glob(".*")] == [".others.txt.0123abcd.partial"]


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "bad.txt").write_text("mine")
    for name in ("a.jpg", "bad.png"):
        for _ in range(2):
            with pytest.raises(BatchError, match="is there already"):
                run(tmp_path, tasks_in(tmp_path, name))
    run(tmp_path, tasks_in(tmp_path, "a.jpg"), restart=True)
    assert (tmp_path / "a.txt").read_text() == "about a.jpg\n"


@pytest.mark.parametrize("restart", [False, True])
def test_a_picture_is_never_replaced(tmp_path: Path, restart: bool) -> None:
    (tmp_path / "a.txt").write_text("a picture, says its owner")
    with pytest.raises(BatchError, match="is there already"):
        run(tmp_path, tasks_in(tmp_path, "a.txt"), restart=restart)


@pytest.mark.parametrize(
    ("names", "prompts"),
    [(("a.jpg", "a.png"), ("What?",)), (("a.jpg", "a.jpg"), ("What?",)), (("a.jpg",), ("What?", "Who?"))],
)
def test_two_answers_for_one_file(tmp_path: Path, names: tuple[str, ...], prompts: tuple[str, ...]) -> None:
    with pytest.raises(BatchError, match="would both become"):
        run(tmp_path, tasks_in(tmp_path, *names, prompts=prompts))
    assert not (tmp_path / "a.txt").exists()
