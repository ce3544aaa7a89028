"""What of the GPU check can be run without a GPU: its commands, and the plans behind them."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.checks.gpu import bench_options, of_fit


@pytest.mark.slow
def test_a_dry_run_plans_for_each_card(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.checks.gpu", "--work", str(tmp_path / "work"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["8 GiB", "12 GiB", "24 GiB"]
    layers = []
    for line, card in zip(lines, (8, 12, 24), strict=True):
        needed, options = line.split(": ", 1)[1].split(" bytes, ")
        layers.append(int(shlex.split(options)[1]))
        assert int(needed.replace(",", "")) <= card * 2**30
        assert int(needed.replace(",", "")) > 0.9 * card * 2**30 or layers[-1] == 65
    assert layers == sorted(layers)
    assert "CMAKE_ARGS=-DGGML_CUDA=on" in done.stderr
    assert "llama-fit-params" in done.stderr


def test_options_of_llama_bench() -> None:
    settings: dict[str, Any] = {"n_gpu_layers": 30, "n_attention_only": 2, "n_ubatch": 512, "n_batch": 2048}
    settings |= {"offload_kqv": True, "type_k": "f16", "type_v": "f16"}
    options = bench_options(settings, n_layer=64)
    assert options[options.index("-ot") + 1] == r"blk\.(35|36)\.ffn_(gate|up|down)\.weight=CPU"
    assert options[options.index("-nkvo") + 1] == "0"


def test_what_llama_fit_params_prints_becomes_options_of_llama_bench() -> None:
    printed = '-c 8192 -ngl 33 -ts 1,2 -ot "blk\\.31\\.ffn_up=CPU"\n'
    assert of_fit(printed) == ["-ngl", "33", "-ot", r"blk\.31\.ffn_up=CPU"]
