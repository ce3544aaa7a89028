"""The verb that plans."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acestep_gguf.cli import app
from acestep_gguf.cli.option_groups import in_flags
from acestep_gguf.errors import UsageError
from acestep_gguf.llama import params

COMMAND = [sys.executable, "-m", "acestep_gguf.cli"]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def test_a_plan_for_hardware_that_is_not_here(tiny_bundle: Path) -> None:
    machine = ["--ram", "16GB", "--vram", "2GB", "--ctx-size", "512", "--images", "2"]
    rates = ["--ram-bandwidth", "40GB", "--vram-bandwidth", "400GB"]
    done = run("plan", str(tiny_bundle), *machine, *rates, "--json")
    facts = json.loads(done.stdout)
    assert facts["ram"]["available"] == 16 * 10**9
    assert facts["settings"]["n_gpu_layers"] == 3  # both layers and the output matrix
    assert facts["gpus"][0]["needed"] <= 2 * 10**9
    assert facts["gpus"][0]["proven"] is False
    in_ram = dict.fromkeys(("process", "opening", "tower", "decoder"), 0)
    for part in facts["parts"]:
        in_ram[part["phase"]] += part["n_bytes"] if part["device"] == 0 else 0
    loaded = in_ram["tower"] + in_ram["decoder"]
    assert facts["ram"]["needed"] == in_ram["process"] + max(in_ram["opening"], loaded)
    assert facts["speed"]["decode"] > 0

    table = run("plan", str(tiny_bundle), *machine, *rates).stdout
    for word in (
        "KV cache",
        "compute buffer",
        "token embeddings",
        "vision tower",
        "not yet proven",
        "decode    about ",
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


def test_a_draft_that_run_would_refuse_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("plan", str(tiny_bundle), "--draft", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere is not a folder" in done.stderr
    table = run("plan", str(tiny_bundle), "--draft", str(tiny_bundle)).stdout
    assert "draft: KV cache" in table


def test_layers_without_a_gpu_are_refused(tiny_bundle: Path) -> None:
    done = run("plan", str(tiny_bundle), "--ram", "16GB", "-ngl", "99")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --n-gpu-layers is 99, but llama.cpp finds no GPU: leave it out")


def test_repacking_that_run_would_refuse_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params, "cpu_flags", lambda: frozenset({params.AMX}))
    done = CliRunner().invoke(app, ["plan", str(tiny_bundle), "--ram", "16GB", "--repack"])
    assert isinstance(done.exception, UsageError)
    assert in_flags(done.exception).startswith("--repack cannot be used on this CPU")


def test_more_pictures_than_a_context_holds_are_refused(tiny_bundle: Path) -> None:
    done = run("plan", str(tiny_bundle), "--images", "1000", "--ctx-size", "512")
    assert (done.returncode, done.stdout) == (1, "")
    wanted = "4000 tokens of pictures do not fit into a context of 512: ask about 127 at most"
    assert done.stderr.startswith(f"error: {wanted}, or about more with a smaller --image-tokens.")
    assert run("plan", str(tiny_bundle), "--images", "127", "--ctx-size", "512").returncode == 0
    longest = run("plan", str(tiny_bundle), "--images", "100000")
    assert "400000 tokens of pictures do not fit into a context of" in longest.stderr


def test_this_machine_is_measured(tiny_bundle: Path) -> None:
    speed = json.loads(run("plan", str(tiny_bundle), "--json").stdout)["speed"]
    assert speed["decode"] > 0
    assert speed["prefill"] > 0
    assert "unknown" not in speed["decode_formula"] + speed["prefill_formula"]
