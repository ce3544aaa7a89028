"""Both programs are asked the same, and the table has medians; the shape here is a tiny one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.edge.smolvlm import N_TOKENS, Runs, make_bundle, programs
from tests.support.tiny_smolvlm import TinySmolVLM


@pytest.mark.slow
def test_the_commands_are_understood(tmp_path: Path, picture: Path) -> None:
    bundle = make_bundle(tmp_path, TinySmolVLM(decoder="smollm"))
    commands = programs(bundle, picture, Path("llama-mtmd-cli"))
    theirs = [command for name, command in commands.items() if name.startswith("llama")]
    assert [Path(command[-1]).exists() for command in theirs] == [True, True]
    assert all(Path(command[command.index("-m") + 1]).exists() for command in theirs)
    for name, command in commands.items():
        if not name.startswith("llama"):
            ours = [sys.executable, "-m", "acestep_gguf.cli", *command[1:], "-n", "1"]
            env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
            subprocess.run(ours, env=env, check=True, capture_output=True)


def test_figures_are_medians() -> None:
    runs = Runs()
    for one, last in ((1.0, 1.0 + N_TOKENS - 1), (9.0, 9.0), (3.0, 3.0 + 3 * (N_TOKENS - 1))):
        runs.one_token.append(one)
        runs.all_tokens.append(last)
    runs.anonymous += [1_000_000, 2_000_000, 9_000_000]
    runs.resident += [4_000_000]
    runs.group += [5_000_000]
    last = 1.0 + N_TOKENS - 1
    assert runs.cells() == f"3.0 s | {(last - 3) / (N_TOKENS - 1):.3f} s | {last:.1f} s | 2 MB | 4 MB | 5 MB"
