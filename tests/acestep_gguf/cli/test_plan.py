"""The verb that plans."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "acestep_gguf.cli"]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def test_a_plan_for_hardware_that_is_not_here(tiny_bundle: Path) -> None:
    told = ["--ram", "16GB", "--vram", "2GB", "--ctx-size", "512", "--images", "2"]
    rates = ["--ram-bandwidth", "40GB", "--vram-bandwidth", "400GB"]
    done = run("plan", str(tiny_bundle), *told, *rates, "--json")
    facts = json.loads(done.stdout)
    assert facts["ram"]["available"] == 16 * 10**9
    assert facts["settings"]["n_gpu_layers"] == 3  # both layers and the output matrix
    assert facts["gpus"][0]["needed"] <= 2 * 10**9
    assert facts["gpus"][0]["proven"] is False
    assert facts["ram"]["needed"] == sum(part["n_bytes"] for part in facts["parts"] if part["device"] == 0)
    assert facts["speed"]["decode"] > 0

    table = run("plan", str(tiny_bundle), *told, *rates).stdout
    for word in (
        "KV cache",
        "compute buffer",
        "token embeddings",
        "vision tower",
        "not yet proven",
        "tokens/s =",
    ):
        assert word in table


def test_a_plan_that_cannot_fit_is_refused_in_one_line(tiny_bundle: Path) -> None:
    done = run("plan", str(tiny_bundle), "--ram", "50MB")
    assert done.returncode == 1
    assert done.stderr.startswith("error: context ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--cpu-flops", "--gpu-flops", "--ram-bandwidth", "--disk-bandwidth"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast"])
def test_rates_that_are_none(tiny_bundle: Path, option: str, value: str) -> None:
    done = run("plan", str(tiny_bundle), option, value)
    assert done.returncode != 0
    assert done.stdout == ""
    assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_run_says_its_plan_on_one_line(tiny_bundle: Path) -> None:
    done = run("run", str(tiny_bundle), "-n", "1", "-c", "256", "-ctk", "q8_0", "-ctv", "q8_0", "hello")
    assert done.returncode == 0, done.stderr
    line = done.stderr.splitlines()[0]
    assert line.startswith("[plan: ")
    assert "context 256, KV q8_0, " in line


def test_a_size_needs_its_unit(tiny_bundle: Path) -> None:
    done = run("plan", str(tiny_bundle), "--ram", "16")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --ram is '16': give a size with its unit, such as 16GB, 11.5GiB or 800M.\n"
