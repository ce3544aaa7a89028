"""Plans against a GPU that a process plays: what it grants is what was planned, to the byte."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.plan.memory import GPU_RESERVE
from scripts.checks.played_card import Card
from tests.support.cards import played_card

pytestmark = pytest.mark.slow

MIB = 2**20

# Loads a decoder onto a card that something else has filled since the plan was made.
LOADS_ALL = """
import sys
from pathlib import Path

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.params import ModelParams
from scripts.checks.played_card import use_card

use_card(Path(sys.argv[2]), sys.argv[3])
try:
    Model(Path(sys.argv[1]), ModelParams(n_gpu_layers=-1))
except DecodeError as error:
    print(error)
"""


def run(card: Card, *words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(card.command(*map(str, words)), capture_output=True, text=True, check=False)


def planned(card: Card, bundle: Path, *options: object) -> dict[str, Any]:
    done = run(card, "plan", bundle, "--json", *options)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.parametrize(
    ("room", "options"),
    [
        (1024, []),
        (1024, ["--n-gpu-layers", "2", "--flash-attn", "off"]),
        (1024, ["--n-gpu-layers", "2", "--no-kv-offload"]),
        (1024, ["--n-gpu-layers", "0"]),
        (1024, ["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "64"]),
        (86, []),  # MiB: for some layers, and the attention of another
    ],
)
def test_what_is_granted_is_what_was_planned(
    hollow_folder: Path, picture: Path, room: int, options: list[str]
) -> None:
    options = ["--ctx-size", "1024", *options]
    with played_card(GPU_RESERVE + room * MIB) as card:
        facts = planned(card, hollow_folder, *options)
        asked = ["--image", picture, "-n", "4", "--no-cache", "What is it?"]
        done = run(card, "run", hollow_folder, *options, *asked)
        granted, refused = card.granted(), card.refused()
    assert done.returncode == 0, done.stderr
    parts = {part["name"]: part["n_bytes"] for part in facts["parts"] if part["device"] == 1}
    assert parts.pop("reserve") == GPU_RESERVE
    compute, kv = parts.pop("compute buffer"), parts.pop("KV cache", 0)
    weights = sum(parts.values())
    assert granted == [n_bytes for n_bytes in (weights, kv, compute) if n_bytes]
    assert refused == []
    if room < 1024:
        assert facts["settings"]["n_gpu_layers"] < 7
        assert facts["settings"]["n_attention_only"] > 0


def test_a_card_without_room_for_what_was_asked_is_refused_before_anything_is_loaded(
    hollow_folder: Path,
) -> None:
    with played_card(GPU_RESERVE + MIB) as card:
        done = run(card, "run", hollow_folder, "--n-gpu-layers", "99", "What is it?")
        assert card.granted() == []
    assert done.returncode == 1
    assert done.stderr.startswith("error: context ")
    assert f"more memory of {card.endpoint}; --n-gpu-layers " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_card_that_something_else_has_filled_is_left_alone(hollow_folder: Path) -> None:
    with played_card(4 * MIB) as card:
        facts = planned(card, hollow_folder, "--ctx-size", "1024")
        done = run(card, "run", hollow_folder, "--ctx-size", "1024", "-n", "2", "What is it?")
        assert card.granted() == card.refused() == []
    assert done.returncode == 0, done.stderr
    assert facts["gpus"][0]["needed"] == 0
    assert facts["settings"]["op_offload"] is False


def test_a_card_that_was_filled_since_is_an_error_that_says_so(hollow_folder: Path) -> None:
    (path,) = hollow_folder.glob("*.gguf")
    with played_card(MIB) as card:
        command = [sys.executable, "-c", LOADS_ALL, str(path), str(card.library), card.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(card.refused()) == 1
    assert done.stdout.startswith(f"llama.cpp cannot load {path}: ")
    assert "unable to allocate" in done.stdout
