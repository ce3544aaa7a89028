"""The verb as a process: with a model, killed, interrupted, on a full disk."""

import csv
import json
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli", "batch"]
# One thread: several of llama.cpp's wait for each other, which takes long where other programs run too.
QUICK = ["-t", "1", "-n", "4", "-q", "F32"]


def command(bundle: Path, *arguments: object) -> list[str]:
    return [*PROGRAM, str(bundle), *QUICK, *map(str, arguments)]


def batch(bundle: Path, *arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command(bundle, *arguments), input=stdin, capture_output=True, check=False, timeout=120
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def texts(path: Path) -> list[tuple[str, str | None, bool]]:
    return [(row["id"], row["text"], row["error"] is not None) for row in rows(path)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures, one in ten of them broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        path = folder / f"{number}.png"
        Image.new("RGB", (40, 30), (number * 12, 255 - number * 12, 40)).save(path)
        if number % 10 == 3:
            path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.mark.slow
def test_a_folder_becomes_a_table(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    arguments = (pictures, "-p", "What is this?", "-o", output)
    done = batch(tiny_bundle, *arguments)
    assert done.returncode == 1  # not all rows are answers
    assert done.stdout == ""
    assert "rows 20, answers 18, errors 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert [row["id"] for row in rows(output)] == [str(pictures / f"{number}.png") for number in range(20)]
    assert [number for number, row in enumerate(rows(output)) if row["error"]] == [3, 13]
    assert all((row["text"] is None) == (row["error"] is not None) for row in rows(output))
    table = output.read_bytes()

    again = batch(tiny_bundle, *arguments)
    assert (again.returncode, output.read_bytes()) == (1, table)
    assert "plan" not in again.stderr  # nothing was loaded

    for name in ("3.png", "13.png"):
        Image.new("RGB", (9, 9)).save(pictures / name)
    assert batch(tiny_bundle, *arguments, "--retry-errors").returncode == 0
    assert [row["error"] for row in rows(output)] == [None] * 20

    refused = batch(tiny_bundle, *arguments, "--temp", "0.5", "-s", "3")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "another --seed, --temp" in refused.stderr


@pytest.mark.slow
def test_exact_is_one_answer_at_a_time(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    asked = (pictures / "0.png", pictures / "1.png", "-p", "What?", "-n", "40")
    outputs = [tmp_path / "exact.jsonl", tmp_path / "one.jsonl"]
    for output, option in zip(outputs, (["--exact"], ["--parallel", "1"]), strict=True):
        assert batch(tiny_bundle, *asked, *option, "-o", output).returncode == 0
    assert texts(outputs[0]) == texts(outputs[1])
    assert batch(tiny_bundle, *asked, "--exact", "-np", "1", "-o", outputs[0]).returncode == 0
    refused = batch(tiny_bundle, *asked, "--exact", "-np", "4", "-o", tmp_path / "a.jsonl")
    wanted = "error: --exact is one answer at a time, not --parallel 4: choose one.\n"
    assert (refused.returncode, refused.stderr) == (1, wanted)


@pytest.mark.slow
def test_killed_at_random_moments(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    arguments = (pictures, "-p", "What is this?", "-p", "Why?", "--exact", "-o")
    batch(tiny_bundle, *arguments, whole)
    journal = killed.with_name("killed.jsonl.journal")
    rng = random.Random(1)
    n_rows = 0
    while n_rows < 30:
        with subprocess.Popen(command(tiny_bundle, *arguments, killed), stderr=subprocess.DEVNULL) as process:
            wanted = n_rows + rng.randint(1, 8)
            while process.poll() is None and (n_rows := n_lines(journal) - 1) < wanted:
                time.sleep(rng.uniform(0, 0.02))
            process.kill()
        assert not killed.exists()
    assert batch(tiny_bundle, *arguments, killed).returncode == 1
    assert texts(killed) == texts(whole)
    keys = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == 40


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_ctrl_c_says_how_to_carry_on(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    prompts = [part for number in range(10) for part in ("-p", f"What is number {number}?")]  # takes a while
    arguments = (pictures, *prompts, "--exact", "-o", output)
    with subprocess.Popen(command(tiny_bundle, *arguments), stderr=subprocess.PIPE) as process:
        while n_lines(tmp_path / "a.csv.journal") < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        shown = process.stderr.read()
        assert process.wait(30) == -signal.SIGINT  # which a shell shows as 130
    assert shown.endswith(b"stopped: the same command carries on\n")
    assert not output.exists()
    assert batch(tiny_bundle, *arguments).returncode == 1
    with output.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 200


@pytest.mark.slow
def test_a_full_disk_ends_it_in_one_line_and_loses_nothing(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = (pictures, "-p", "What is this?", "-o", tmp_path / "a.jsonl")

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    done = subprocess.run(
        command(tiny_bundle, *arguments),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=fill,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "make room" in done.stderr
    kept = n_lines(tmp_path / "a.jsonl.journal") - 1
    assert 1 <= kept < 20
    again = batch(tiny_bundle, *arguments)
    assert f"{kept} of 20 rows were there already" in again.stderr
    assert len(rows(tmp_path / "a.jsonl")) == 20


@pytest.mark.slow
def test_a_table_from_standard_input(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    lines = [
        str(picture),
        json.dumps({"id": 5, "image": str(picture), "prompt": "Why?", "split": "test"}),
        "gone.png",
    ]
    done = batch(
        tiny_bundle,
        "-",
        "-p",
        "What?",
        "-o",
        tmp_path / "a.jsonl",
        "--sidecar",
        "txt",
        stdin="\n".join(lines).encode(),
    )
    assert done.returncode == 1
    assert "would both become" in done.stderr
    done = batch(tiny_bundle, "-", "-p", "What?", "-o", tmp_path / "a.jsonl", stdin="\n".join(lines).encode())
    first, second, third = rows(tmp_path / "a.jsonl")
    assert (first["id"], first["prompt"]) == (str(picture), "What?")
    assert (second["id"], second["prompt"], second["split"]) == (5, "Why?", "test")
    assert "cannot be read" in third["error"]


@pytest.mark.slow
def test_answers_that_are_data_have_columns(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "text": {"type": "boolean"}},
        "required": ["colour", "text"],
        "additionalProperties": False,
    }
    several = ("--parallel", 3, "-n", 40, "--json-schema", json.dumps(schema))
    done = batch(
        tiny_bundle,
        *map(str, sorted(pictures.glob("[1-6].png"))),
        "-p",
        "What?",
        "-o",
        tmp_path / "a.jsonl",
        *several,
    )
    assert "rows 6, answers 5, errors 1" in done.stderr
    for row in rows(tmp_path / "a.jsonl"):
        if row["finish_reason"] == "stop":
            assert row["colour"] in ("red", "blue")
            assert row["answer_text"] in (True, False)
    assert any(row["finish_reason"] == "stop" for row in rows(tmp_path / "a.jsonl"))


@pytest.mark.slow
def test_a_terminal_gets_a_bar(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = command(tiny_bundle, pictures, "-p", "What is this?", "-o", tmp_path / "a.jsonl")
    with subprocess.Popen(arguments, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    for words in (b"/20", b"/min", b"rows 20, answers 18"):
        assert words in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back


def test_a_bundle_that_cannot_see(bundle_copy: Path, pictures: Path, tmp_path: Path) -> None:
    facts = json.loads((bundle_copy / "bundle.json").read_bytes())
    facts |= {"vision": None, "image": None}
    facts["prompt"]["image_token"] = facts["source"]["vision_model_type"] = None
    (bundle_copy / "bundle.json").write_text(json.dumps(facts))
    done = batch(bundle_copy, pictures, "-p", "What?", "-o", tmp_path / "a.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith("error: this bundle has no vision tower")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.slow
@pytest.mark.parametrize("together", [["--exact"], []])
def test_a_bundle_without_its_tower_ends_it_and_makes_no_rows(
    bundle_copy: Path, pictures: Path, tmp_path: Path, together: list[str]
) -> None:
    """Rows with this error would stay when the file is there again."""
    tower = bundle_copy / Bundle.read(bundle_copy).vision_file().data.file
    tower.rename(tmp_path / "moved")
    arguments = (pictures, "-p", "What is this?", "-o", tmp_path / "a.jsonl", *together)
    done = batch(bundle_copy, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tower} is missing")
    assert not (tmp_path / "a.jsonl").exists()
    (tmp_path / "moved").rename(tower)
    batch(bundle_copy, *arguments)
    assert [error for _, _, error in texts(tmp_path / "a.jsonl")].count(True) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{pictures}", "-o", "{out}/a.jsonl"], "no question about"),
        (["{pictures}", "-p", " ", "-o", "{out}/a.jsonl"], "--prompt is empty"),
        (["{pictures}", "-p", "What?", "-o", "{out}/a.txt"], "is no table"),
        (["{pictures}", "-p", "What?", "-o", "{out}/a.csv", "--sidecar", "xml"], "txt or json"),
        (["{out}/missing", "-p", "What?", "-o", "{out}/a.csv"], "is not there"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = batch(tiny_bundle, *(text.format(pictures=pictures, out=tmp_path) for text in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.glob("a.*"))
