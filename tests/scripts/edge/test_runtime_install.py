"""What an install is found to weigh, and that an answer needs neither a network nor much of a machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.edge.runtime_install import board, installed_sizes

LOOKS_UP = "import socket; socket.create_connection(('127.0.0.1', 9))"


def test_sizes_are_those_of_the_files() -> None:
    sizes = installed_sizes(Path(sys.prefix))
    assert "pip" not in sizes
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / "capi"
    assert sizes["onnxruntime"] > sum(path.stat().st_size for path in library.glob("*.so"))


@pytest.mark.slow
def test_a_board_without_network_answers(tmp_path: Path, tiny_bundle: Path, picture: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("taskset") is None:
        pytest.skip("util-linux is not installed")
    try:
        with board() as (words, group):
            closed = subprocess.run(
                [*words, sys.executable, "-c", LOOKS_UP], capture_output=True, check=False
            )
            if b"unshare failed" in closed.stderr:
                pytest.skip("no network namespace can be made here")
            assert b"Network is unreachable" in closed.stderr
            run = [*words, sys.executable, "-m", "acestep_gguf.cli", "run", str(tiny_bundle), "-n", "2"]
            env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
            subprocess.run([*run, "--image", str(picture), "What is it?"], env=env, check=True)
            assert 0 < group.peak <= 512 * 10**6
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror})")
