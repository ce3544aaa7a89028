"""Standard streams and Ctrl-C, whatever they are given, and what a terminal is shown."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tty
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.cli.terminal import CONTROLS, printable
from tests.support.command_line import PROGRAM, acestep
from tests.support.gguf_files import rewrite
from tests.support.imatrix_files import random_sums, write_gguf_imatrix
from tests.support.tiny_checkpoints import TinyCheckpoint

# Any token is about as probable as any other, and one of fifteen is a control character.
RANDOM_ANSWER = ["-n", "150", "--seed", "9", "--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0"]


def at_a_terminal(command: list[str], stdin: bytes = b"") -> str:
    """What a program writes to a terminal, which it may take as commands."""
    reader, writer = pty.openpty()
    tty.setraw(writer)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.DEVNULL
    ) as process:
        os.close(writer)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        written = b""
        while True:
            try:
                piece = os.read(reader, 4096)
            except OSError:  # Linux says so that nobody writes any more
                break
            if not piece:
                break
            written += piece
    os.close(reader)
    assert process.returncode == 0
    return written.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "stdin"), [("run", b"x"), ("chat", b"x\n")])
def test_an_answer_cannot_command_the_terminal(tiny_bundle: Path, verb: str, stdin: bytes) -> None:
    command = [*PROGRAM, verb, str(tiny_bundle), *RANDOM_ANSWER]
    piped = subprocess.run(command, input=stdin, capture_output=True, check=True).stdout.decode()
    assert any(ord(char) in CONTROLS for char in piped)
    assert at_a_terminal(command, stdin) == piped.translate(CONTROLS)


def test_names_of_tensors_cannot_command_the_terminal(decoder_file: Path, tmp_path: Path) -> None:
    sums, counts = random_sums(decoder_file)
    imatrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", sums, counts)
    name = "\x1b[2J.attn_q.weight"
    source = rewrite(
        decoder_file,
        tmp_path / "in.gguf",
        change=lambda tensors: tensors | {name: np.zeros((256, 256), np.float32)},
    )
    arguments = ["quantize", str(source), str(tmp_path / "out.gguf"), "Q4_K_M", "--imatrix", str(imatrix)]
    shown = at_a_terminal([*PROGRAM, *arguments, "--dry-run"])
    assert "\ufffd[2J.attn_q.weight" in shown
    assert not any(ord(char) in CONTROLS for char in shown)


def test_json_cannot_command_the_terminal() -> None:
    code = r"from acestep_gguf.cli.terminal import json_text; print(json_text('\t\x1b[2J\x7f\x9b2J'))"
    shown = at_a_terminal([sys.executable, "-c", code])
    assert not any(ord(char) in CONTROLS for char in shown)
    assert json.loads(shown) == "\t\x1b[2J\x7f\x9b2J"


def test_an_error_is_one_printable_line(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2J\nb\udcff"
    done = subprocess.run([*PROGRAM, "info", str(folder)], capture_output=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert "a?[2J?b? is not a folder" in line
    assert line.isprintable()


@given(st.text())
def test_printable_texts_are_shown_as_they_are(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    if text.isprintable():
        assert printable(text) == text


def interruptible(
    *arguments: object, stdin: int = subprocess.DEVNULL, handler: Any = signal.default_int_handler
) -> subprocess.Popen[bytes]:
    """A verb with ``handler`` for Ctrl-C: whoever runs the tests in the background may have it ignored."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),  # noqa: PLW1509
    )


def shell(bundle: Path, arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = subprocess.list2cmdline([*PROGRAM, "run", str(bundle), "hi", "-n", "2", "-t", "1"])
    return subprocess.run(
        ["sh", "-c", f"{command} {arguments}"], capture_output=True, check=False, timeout=60
    )


def test_a_closed_standard_error_does_not_become_standard_output(tiny_bundle: Path) -> None:
    for streams in ("2>&-", "<&- 2>&-"):
        done = shell(tiny_bundle, streams)
        assert done.returncode == 0
        assert b"tokens/s" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii", "latin-1:strict"])
def test_what_a_terminal_cannot_show_is_no_error(
    tiny_bundle: Path, picture: Path, tmp_path: Path, encoding: str
) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    # A path that the terminal's encoding does not have, and one that is not UTF-8.
    for name in ("日本.png".encode(), b"\xff.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        shutil.copy(os.fsencode(picture), path)
        done = acestep("encode", tiny_bundle, path, "-o", tmp_path / "out", "-t", 1, env=env)
        assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_quietly_by_the_signal_and_so_a_loop_in_a_shell(tiny_bundle: Path) -> None:
    with interruptible("run", tiny_bundle, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)  # it waits for a question
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stderr.read() == b""


def test_ctrl_c_while_converting_says_how_to_go_on(tmp_path: Path) -> None:
    large = TinyCheckpoint(has_tower=False, hidden_size=512, intermediate_size=2048, n_layers=8, n_heads=8)
    checkpoint = large.write(tmp_path / "checkpoint")
    with interruptible("convert", checkpoint, tmp_path / "out", "-t", 1, "--log-json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b'"plan"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr.read() == b"stopped: the same command carries on.\n"


def test_ctrl_c_that_is_ignored_stays_so(tiny_bundle: Path) -> None:
    with interruptible("run", tiny_bundle, "-n", 2, stdin=subprocess.PIPE, handler=signal.SIG_IGN) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGINT)
        process.communicate(b"hello", timeout=60)
        assert process.returncode == 0


def test_json_has_paths_that_are_not_utf8(bundle_copy: Path) -> None:
    path = os.fsencode(bundle_copy.parent) + b"/\xff"
    bundle_copy.rename(os.fsdecode(path))
    done = acestep("verify", path, "--quick", "--json")
    assert json.loads(done.stdout)["bundle"] == os.fsdecode(path)
