import json
import os
import pty
import subprocess
import sys
import tty
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.cli.terminal import CONTROLS, printable
from tests.support.gguf_files import rewrite
from tests.support.imatrix_files import random_sums, write_gguf_imatrix

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli"]
# Any token is about as probable as any other, and one of fifteen is a control character.
RANDOM_ANSWER = [
    "x", "-n", "150", "--seed", "9", "--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0"
]  # fmt: skip


def at_a_terminal(command: list[str]) -> str:
    """What a program writes to a terminal, which it may take as commands."""
    reader, writer = pty.openpty()
    tty.setraw(writer)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL
    ) as process:
        os.close(writer)
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


def test_an_answer_cannot_command_the_terminal(tiny_bundle: Path) -> None:
    command = [*PROGRAM, "run", str(tiny_bundle), *RANDOM_ANSWER]
    piped = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert any(ord(char) in CONTROLS for char in piped)
    assert at_a_terminal(command) == piped.translate(CONTROLS)


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
    assert json.loads(shown) == "\t\x1b[2J\ufffd\ufffd2J"


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
