"""The command line in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli"]


def acestep(
    *arguments: str | bytes | object, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a verb; bytes that are not UTF-8 may be among its arguments and in what it prints."""
    # One thread: several of llama.cpp's wait for each other, which takes long where other programs run too.
    one_thread = ["-t", "1"] if arguments[0] == "run" and "--help" not in arguments else []
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    command = [*PROGRAM, *words[:1], *one_thread, *words[1:]]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120, env=env)
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode(errors="surrogateescape"),
        done.stderr.decode(errors="surrogateescape"),
    )


def check_is_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Whether it failed in one line, which has ``words`` in it, and printed nothing else."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
