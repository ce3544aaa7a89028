"""Libraries that are built once: how, and that make takes them; nothing is compiled here."""

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts/edge/build_libllama.sh"
ELSEWHERE = ("GGML_BACKEND_DIR", "LLAMA_BUILD=")  # its own folder, and its bindings
PINNED = version("llama-cpp-python")


def flags(text: str) -> set[str]:
    return set(re.findall(r"-D((?:GGML|LLAMA)_\w+=\w+)", text))


def test_the_libraries_are_those_of_the_container() -> None:
    (build,) = re.findall(r"^cmake -S .*?\"\$@\"$", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    container = flags((ROOT / "docker/Dockerfile").read_text())
    assert flags(build)
    assert flags(build) == {flag for flag in container if not flag.startswith(ELSEWHERE)}


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path} is there already: remove it, or name another folder.\n"


@pytest.mark.parametrize(("release", "taken"), [(PINNED, True), ("0.1.0", False)])
def test_make_takes_the_wheel_of_its_version(tmp_path: Path, release: str, taken: bool) -> None:
    wheel = tmp_path / f"llama_cpp_python-{release}-py3-none-linux_x86_64.whl"
    wheel.touch()
    command = ["make", "--dry-run", "--always-make", "-C", str(ROOT), ".venv/runtime"]
    env = os.environ | {"LLAMA_CPP_LIB_PATH": str(tmp_path)}
    steps = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert "--editable '.[convert]'" in steps
    assert (str(wheel) in steps) is taken
