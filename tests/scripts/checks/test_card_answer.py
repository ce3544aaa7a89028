"""A question about a picture, on a played GPU in a control group and on the CPU: the check itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.memory_group import memory_group
from tests.support.cards import played_card


@pytest.mark.slow
def test_answers_are_the_same_to_the_bit(tiny_bundle: Path, picture: Path) -> None:
    with played_card(2**20):  # skips where none can be played
        pass
    try:
        with memory_group():
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error})")
    command = [sys.executable, "-m", "scripts.checks.card_answer", str(tiny_bundle), str(picture)]
    command += ["--card", "2GiB", "--ram", "1GiB", "--n-predict", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, tokens, logits, state = done.stdout.splitlines()
    assert (tokens, logits, state) == ("tokens: the same", "logits: the same", "state: the same")
    assert "refused: []" in done.stdout
