"""onnxruntime tells nobody that it is used: it leaves no files, and looks nobody up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 12  # onnxruntime 1.32 looks up its maker's host nine seconds after it was imported
OURS_FIRST = "import acestep_gguf, onnxruntime"
THEIRS_FIRST = "import onnxruntime, acestep_gguf"
ANSWER = """
import sys
with acestep_gguf.AceStep(sys.argv[1], n_threads=1, n_ctx=256) as model:
    assert model.generate("What is this?", [sys.argv[2]], max_tokens=2).text
assert "onnxruntime" in sys.modules
"""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """A new user's, without what this process has set."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **variables}


def files_of_others(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and "acestep-gguf" not in path.parts]


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        (OURS_FIRST + ANSWER, {}),
        ("import acestep_gguf" + ANSWER, {}),
        (THEIRS_FIRST + ANSWER, {"ORT_DISABLE_TELEMETRY": "1"}),
    ],
)
def test_no_files(
    code: str, variables: dict[str, str], tmp_path: Path, tiny_bundle: Path, picture: Path
) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tiny_bundle), str(picture)]
    subprocess.run(command, env=environment(home, **variables), check=True)
    assert not files_of_others(home)


def test_who_imports_onnxruntime_first_is_warned(tmp_path: Path) -> None:
    code = f"{THEIRS_FIRST}; import acestep_gguf.engine.engine"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stderr.count("set ORT_DISABLE_TELEMETRY=1, or import acestep_gguf first") == 1


@pytest.mark.slow
def test_no_look_ups(tmp_path: Path, tiny_bundle: Path, picture: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    orders = {"ours": (OURS_FIRST, {}), "theirs": (THEIRS_FIRST, {"ORT_DISABLE_TELEMETRY": "1"})}
    running = []
    for name, (imports, variables) in orders.items():
        trace = [strace, "-f", "-qq", "-e", "trace=socket", "-o", str(tmp_path / name)]
        code = f"{imports}{ANSWER}import time; time.sleep({SECONDS}); print('slept')"
        python = [sys.executable, "-c", code, str(tiny_bundle), str(picture)]
        env = environment(tmp_path / f"home of {name}", **variables)
        running.append(subprocess.Popen([*trace, *python], env=env, stdout=subprocess.PIPE, text=True))
    assert [process.communicate(timeout=300)[0] for process in running] == ["slept\n", "slept\n"]
    for name in orders:
        assert "AF_INET" not in (tmp_path / name).read_text()
