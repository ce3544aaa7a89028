"""What of the check of ARM runs anywhere: a machine's answers, kept as they come, and their comparison."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.edge.aarch64 import report, requirements
from scripts.edge.board_answers import read


@pytest.mark.slow
def test_an_unfinished_run_carries_on(tmp_path: Path, tiny_bundle: Path, picture: Path) -> None:
    asked = [{"name": f"demo {i}", "question": f"What {i}?", "images": [str(picture)]} for i in range(2)]
    tasks, out = tmp_path / "tasks.json", tmp_path / "out.jsonl"
    tasks.write_text(json.dumps({"texts": ["a", ""], "questions": asked}))
    command = [sys.executable, "-m", "scripts.edge.board_answers", str(tiny_bundle), str(tasks), str(out)]
    subprocess.run(command, check=True)
    whole = out.read_text()
    assert list(read(out)) == ["tokens", "tower", "demo 0", "demo 1"]
    assert read(out)["tower"]["taken"] == "int8"

    known = {"text": "known before", "tokens": []}
    lines = whole.splitlines(keepends=True)
    out.write_text("".join([*lines[:2], json.dumps(["demo 0", known]) + "\n", lines[3][:-9]]))
    subprocess.run(command, check=True)
    assert read(out) == {**dict(map(json.loads, lines)), "demo 0": known}


def test_what_differs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    same, other = {"text": "4", "tokens": [4]}, {"text": "5", "tokens": [5]}
    report(
        {"tokens": [[1], [2]], "demo a": same, "demo b": same, "held out 0": same},
        {"tokens": [[1], [3]], "demo a": same, "demo b": other},
    )
    table, said = capsys.readouterr().out.split("\n\n")
    assert "| texts tokenized | 2 | 2 | 1 the same |" in table
    assert "| demo: answers | 2 | 2 | 1 the same |" in table
    assert "| held out: answers | 0 | 0 | 0 the same |" in table
    assert said == "demo b: '4' here, '5' on ARM\n"


def test_requirements_are_those_without_extras(tmp_path: Path) -> None:
    folder = tmp_path / "one-1.dist-info"
    folder.mkdir()
    lines = ["Name: one", "Requires-Dist: numpy>=2", "Requires-Dist: llama-cpp-python==1"]
    (folder / "METADATA").write_text("\n".join([*lines, 'Requires-Dist: onnx; extra == "convert"']))
    assert requirements(tmp_path) == ["numpy>=2"]
