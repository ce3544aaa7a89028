import csv
import json
from pathlib import Path

import pytest

from acestep_gguf.batch.journal import Journal
from acestep_gguf.batch.rows import COLUMNS, row_of
from acestep_gguf.batch.tables import check_output, write_table
from acestep_gguf.batch.tasks import Entry, Task, tasks_of
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.errors import BatchError, ImageError
from tests.support.batches import answered

TASKS = tasks_of(
    [
        Entry("1", (Path("1.png"),), None, {"count": 3, "share": 1, "mixed": 1, "huge": 2**70}),
        Entry(
            "2", (Path("2.png"), Path("3.png")), None, {"count": 4, "share": 0.5, "mixed": "x", "ok": True}
        ),
        Entry("3", (Path("bad.png"),), None, {"list": [1, {"a": None}]}),
    ],
    ["What?"],
)


def written(folder: Path, name: str, tasks: list[Task], texts: list[str | None]) -> Path:
    path = folder / name
    with Journal(path, {}) as journal:
        for task, text in zip(tasks, texts, strict=True):
            outcome = Outcome(0, error=ImageError("bad")) if text is None else Outcome(0, answered(text))
            journal.append(task, row_of(task, outcome))
        write_table(path, tasks, journal)
    return path


def test_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", TASKS, ['say "hi",\nthen', "Größe", None])
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [*COLUMNS, "count", "share", "mixed", "huge", "ok", "list"]
    assert [row["text"] for row in table] == ['say "hi",\nthen', "Größe", ""]
    assert [row["path"] for row in table] == ["1.png", '["2.png","3.png"]', "bad.png"]
    assert [row["error"] for row in table] == ["", "", "bad"]
    assert [row["count"] for row in table] == ["3", "4", ""]
    assert table[2]["list"] == '[1,{"a":null}]'
    assert table[0]["seconds"] == "2.5"
    assert [row["ok"] for row in table] == ["", "true", ""]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3+cmd", "'-2+3+cmd"),
        ("\t=1", "'\t=1"),
        ("-5", "-5"),
        ("+3.25", "+3.25"),
        ("5 = 5", "5 = 5"),
        ("a\0\x1b[2Jb\x9b", "a��[2Jb�"),
        ("\r=1", "�=1"),
    ],
)
def test_csv_neither_computes_nor_commands(tmp_path: Path, text: str, shown: str) -> None:
    task = tasks_of([Entry(text, (Path("1.png"),), None, {text: text})], ["What?"])[0]
    with written(tmp_path, "a.csv", [task], [text]).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == row["id"] == row[shown] == shown


def test_json_lines_are_exact(tmp_path: Path) -> None:
    text = "=1\0\x1b\u2028 Größe \U0001f600"
    path = written(tmp_path, "a.jsonl", TASKS, [text, "", None])
    first, second, third = map(json.loads, path.read_bytes().splitlines())
    assert (first["text"], second["text"], third["text"]) == (text, "", None)
    assert second["path"] == ["2.png", "3.png"]
    assert first["huge"] == 2**70


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = written(tmp_path, "a.parquet", TASKS, ["=1\0", "Größe", None])
    table = parquet.read_table(path)
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert list(kinds) == [*COLUMNS, "count", "share", "mixed", "huge", "ok", "list"]
    assert kinds["text"] == kinds["error"] == kinds["path"] == kinds["mixed"] == kinds["huge"] == "string"
    assert kinds["completion_tokens"] == kinds["count"] == "int64"
    assert kinds["seconds"] == kinds["share"] == "double"
    assert kinds["ok"] == "bool"
    assert table["text"].to_pylist() == ["=1\0", "Größe", None]
    assert table["path"].to_pylist() == ["1.png", '["2.png","3.png"]', "bad.png"]
    assert table["mixed"].to_pylist() == ["1", "x", None]
    assert table["list"].to_pylist() == [None, None, '[1,{"a":null}]']
    assert pyarrow.__name__ == "pyarrow"


def test_members_of_answers_that_are_data_are_columns(tmp_path: Path) -> None:
    answers = ['{"total": 3, "text": "T", "items": [1]}', '{"count": 9}', '{"total": 4']
    path = tmp_path / "a.csv"
    with Journal(path, {}) as journal:
        for task, text in zip(TASKS, answers, strict=True):
            journal.append(task, row_of(task, Outcome(0, answered(text))))
        write_table(path, TASKS, journal, is_data=True)
        write_table(tmp_path / "a.jsonl", TASKS, journal, is_data=True)
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[-4:] == ["total", "answer_text", "items", "answer_count"]
    assert [row["total"] for row in table] == ["3", "", ""]  # the last one was cut short
    assert [row["answer_text"] for row in table] == ["T", "", ""]
    assert table[0]["items"] == "[1]"
    assert (table[1]["count"], table[1]["answer_count"]) == ("4", "9")
    assert [row["text"] for row in table] == answers
    first = json.loads((tmp_path / "a.jsonl").read_bytes().splitlines()[0])
    assert (first["total"], first["items"]) == (3, [1])


@pytest.mark.parametrize(
    "name", ["answers", "answers.txt", "answers.xlsx", "missing/answers.csv", "folder.csv"]
)
def test_outputs_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BatchError):
        check_output(tmp_path / name)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", TASKS[:1], ["old"])
    old = path.read_bytes()
    with Journal(path, {}) as journal, pytest.raises(KeyError):
        write_table(path, TASKS, journal)  # not all have rows
    assert path.read_bytes() == old
    (tmp_path / ".a.csv.0123abcd.partial").touch()  # of a process that was killed
    written(tmp_path, "a.csv", TASKS[:1], ["old"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.csv.journal"]
