"""Quantizations that are killed. Then the same command carries on, to the same bytes."""

import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from acestep_gguf.quantize.requantize import quantize_gguf
from tests.quantize.conftest import MakeSource
from tests.support.killed_processes import contents, die_before_operation, run

OUT = "small.gguf"


def quantize(source: Path, folder: Path) -> None:
    quantize_gguf(source, folder / OUT, "Q4_K_M", threads=2)


def quantize_until(source: Path, folder: Path, n_operations: int) -> None:
    die_before_operation(n_operations, folder)
    quantize(source, folder)


@pytest.fixture(scope="module")
def source(make_source: MakeSource) -> Path:
    return make_source("F32", n_layers=6)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed quantization makes."""
    folder = tmp_path_factory.mktemp("expected")
    quantize(source, folder)
    return (folder / OUT).read_bytes()


def assert_whole_or_not_there(folder: Path, expected: bytes) -> None:
    finished = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
    assert finished in ({}, {OUT: expected})


@pytest.mark.slow
def test_killed_before_each_operation_on_a_file(tmp_path: Path, source: Path, expected: bytes) -> None:
    n_operations = 0
    while True:
        folder = tmp_path / str(n_operations)
        folder.mkdir()
        is_through = run(quantize_until, source, folder, n_operations)
        assert_whole_or_not_there(folder, expected)
        if is_through:
            break
        quantize(source, folder)
        assert contents(folder) == {OUT: expected}
        n_operations += 1
    assert contents(folder) == {OUT: expected}
    assert n_operations >= 6


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, source: Path, expected: bytes) -> None:
    """Again and again into the same folder until it is through, then into a new one."""
    started = perf_counter()
    assert run(quantize, source, tmp_path)
    seconds = perf_counter() - started
    rng = random.Random(0)
    n_killed = n_carried_on = n_folders = 0
    while n_killed < 20:
        folder = tmp_path / str(n_folders)
        folder.mkdir()
        while not run(quantize, source, folder, kill_after=rng.uniform(0.0, 1.1 * seconds)):
            n_killed += 1
            n_carried_on += any(folder.glob(".*.journal"))
            assert_whole_or_not_there(folder, expected)
        assert contents(folder) == {OUT: expected}
        n_folders += 1
    assert n_carried_on >= 3


@pytest.mark.slow
def test_killed_command_line_that_was_to_replace_a_file(
    tmp_path: Path, source: Path, expected: bytes
) -> None:
    (tmp_path / OUT).write_bytes(b"GGUF old")
    command = [
        sys.executable,
        "-m",
        "acestep_gguf.cli",
        "quantize",
        str(source),
        str(tmp_path / OUT),
        "Q4_K_M",
    ]
    with subprocess.Popen([*command, "--log-json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # On a fast day it may be through by then: the next command must not mind.
        next((line for line in process.stdout if '"event":"progress"' in line.replace(" ", "")), None)
        process.kill()
    assert (tmp_path / OUT).read_bytes() in (b"GGUF old", expected)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path) == {OUT: expected}
