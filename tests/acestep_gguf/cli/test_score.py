"""The verb as a process: killed, interrupted, with what failed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acestep_gguf.score.test_run import lines, mme, mme_folder
from tests.support.benchmark_files import png

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli", "score"]
# One thread: several of llama.cpp's wait for each other, which takes long where other programs run too.
QUICK = ["-t", "1", "-n", "4", "-q", "F32", "-q", "Q8_0", "--vision", "float32", "--exact"]


def command(bundle: Path, *arguments: object) -> list[str]:
    return [*PROGRAM, str(bundle), "mme", *map(str, arguments), *QUICK]


def score(bundle: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(bundle, *arguments), capture_output=True, text=True, check=False, timeout=120
    )


def n_answers(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") - 1 for path in out.glob("*.journal") if path.stat().st_size)


@pytest.mark.slow
def test_killed_at_random_moments(tiny_bundle: Path, tmp_path: Path) -> None:
    file, whole, killed = mme(tmp_path, 8), tmp_path / "whole", tmp_path / "killed"
    assert score(tiny_bundle, file, "-o", whole).returncode == 0
    rng = random.Random(1)
    n_done = 0
    while n_done < 24:
        arguments = command(tiny_bundle, file, "-o", killed)
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            wanted = n_done + rng.randint(1, 8)
            while process.poll() is None and (n_done := n_answers(killed)) < wanted:
                time.sleep(rng.uniform(0, 0.02))
            process.kill()
    assert score(tiny_bundle, file, "-o", killed).returncode == 0
    assert not (killed / "embeds").exists()
    for path in whole.glob("*.jsonl"):
        assert (killed / path.name).read_bytes() == path.read_bytes()
        journal = path.with_name(f"{path.name}.journal").name
        keys = [json.loads(line)["key"] for line in (killed / journal).read_bytes().splitlines()[1:]]
        assert len(keys) == len(set(keys)) == 16


@pytest.mark.slow
def test_ctrl_c_says_how_to_carry_on(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = (mme(tmp_path, 100), "-o", tmp_path / "out")  # takes a while
    with subprocess.Popen(command(tiny_bundle, *arguments), stderr=subprocess.PIPE) as process:
        while n_answers(tmp_path / "out") < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        shown = process.stderr.read()
        assert process.wait(30) == -signal.SIGINT  # which a shell shows as 130
    assert shown.endswith(b"stopped: the same command carries on\n")
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.slow
def test_what_failed_is_told_and_ends_with_1(tiny_bundle: Path, tmp_path: Path) -> None:
    file = mme_folder(tmp_path)
    (file / "OCR/1.png").write_bytes(png(1)[:40])
    done = score(tiny_bundle, file, "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    assert done.stderr.endswith("4 questions failed, and count as wrong: the same command asks again\n")
    report = json.loads(done.stdout)
    assert [one["decoder"] for one in report["decoders"]] == ["F32", "Q8_0"]
    assert [one["passes"][0]["errors"] for one in report["decoders"]] == [2, 2]
    (file / "OCR/1.png").write_bytes(png(1))
    again = score(tiny_bundle, file, "-o", tmp_path / "out")
    assert again.returncode == 0
    assert again.stdout.splitlines()[2].split()[-1] == "2158.9"
    assert len(lines(tmp_path / "out/Q8_0-vlmevalkit-answers.jsonl")) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "llava"], "MME has no --prompts llava"),
        (["-q", "Q6_K"], "no decoder 'Q6_K'"),
        (["--rpc", "here"], "--rpc has 'here': write HOST:PORT"),
        (["-np", "4"], "--exact is one answer at a time"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    tiny_bundle: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = score(tiny_bundle, mme(tmp_path), "-o", tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
