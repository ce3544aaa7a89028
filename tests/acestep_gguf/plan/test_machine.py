"""What the machine has."""

import os
from pathlib import Path

import pytest

from acestep_gguf.plan import machine
from acestep_gguf.plan.machine import reinstall_command, this_machine, usable_threads


def test_this_machine_has_memory_and_threads() -> None:
    here = this_machine()
    assert 0 < here.ram < 2**60
    assert 1 <= here.n_threads <= (os.cpu_count() or 1)
    assert here.gpus == () or here.unused_gpu is None


def test_what_the_process_holds_already_is_not_to_be_had() -> None:
    before = this_machine().ram
    model = bytearray(os.urandom(2**20)) * 2000  # of another model, say
    after = this_machine().ram
    assert before - after > 300 * 2**20  # others take and give memory meanwhile
    del model


def test_a_quota_limits_threads(tmp_path: Path) -> None:
    assert usable_threads(0.5, tmp_path) == 1
    assert usable_threads(1.2, tmp_path) <= 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_slow_cores_are_left_out(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    for name, cpus in (("cpu_core", str(first)), ("cpu_atom", "500-503")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpus").write_text(cpus + "\n")
    assert usable_threads(devices=tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_slow_cores_of_arm_are_known_by_their_capacity(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    for cpu, capacity in ((first, 1024), (900, 1000), (901, 400)):
        folder = tmp_path / f"system/cpu/cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    assert usable_threads(devices=tmp_path) == 1


def test_a_gpu_that_llama_cpp_cannot_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "version"
    monkeypatch.setattr(machine, "GPU_MARKS", ((mark, "CUDA", "-DGGML_CUDA=on"),))
    without = this_machine().unused_gpu
    mark.touch()
    here = this_machine()
    if here.gpus:
        pytest.skip("llama.cpp uses a GPU here")
    assert without is None
    assert here.unused_gpu == "CUDA"


@pytest.mark.parametrize(
    ("build", "flag"), [("CUDA", "CUDA"), ("Vulkan", "VULKAN"), ("ROCm", "HIP"), ("Metal", "METAL")]
)
def test_the_command_that_installs_llama_cpp_for_a_gpu(build: str, flag: str) -> None:
    assert f"-DGGML_{flag}=on" in reinstall_command(build)
