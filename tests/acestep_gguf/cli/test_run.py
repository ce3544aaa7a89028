"""What a hand does at the prompt of ``run``."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import PROGRAM, acestep, check_is_one_line


def test_a_picture_is_no_question(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    other = shutil.copy(picture, tmp_path / "b c.jpg")
    for question in ([], ["What is this?"]):
        done = acestep("run", tiny_bundle, "--image", picture, other, *question)
        check_is_one_line(done, f"{other} is a file, not a question", "--image a.png --image b.png")


def test_a_question_without_quotes(tiny_bundle: Path) -> None:
    check_is_one_line(acestep("run", tiny_bundle, "What", "is", "this?"), "quotes", '"What is this?"')


def test_a_forgotten_bundle(picture: Path) -> None:
    for more in ([], ["--image", picture]):
        done = acestep("run", "What is this?", *more, stdin=b"piped")
        check_is_one_line(done, "What is this? is not a folder", 'run BUNDLE "QUESTION"')


def test_arguments_that_are_not_utf8(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    check_is_one_line(acestep("run", tiny_bundle, b"h\xffi"), "not UTF-8")
    check_is_one_line(acestep("run", tiny_bundle, "hi", "-sys", b"h\xffi"), "not UTF-8")
    check_is_one_line(acestep("run", tiny_bundle, "hi", "--image", b"\xff.png"), "cannot be read")
    path = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(os.fsencode(picture), path)
    assert acestep("run", tiny_bundle, "hi", "--image", path, "-n", 2).returncode == 0


@pytest.mark.parametrize("option", ["--image", "--embeds", "BUNDLE"])
def test_an_empty_path_is_not_the_current_folder(tiny_bundle: Path, option: str) -> None:
    arguments = ["", "hi"] if option == "BUNDLE" else [tiny_bundle, "hi", option, ""]
    done = acestep("run", *arguments)
    assert done.returncode == 2
    assert f"'{option}': the path is empty" in done.stderr


def test_a_name_of_several_lines_is_told_on_one(tiny_bundle: Path) -> None:
    done = acestep("run", tiny_bundle, "hi", "--image", "a\n\x1b[2Jb.png")
    check_is_one_line(done, "a??[2Jb.png cannot be read")


@pytest.mark.slow
def test_input_that_is_not_read_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    def warned(stdin: str) -> bool:
        command = subprocess.list2cmdline([*PROGRAM, "run", str(tiny_bundle), "hi", "-n", "2", "-t", "1"])
        done = subprocess.run(
            ["sh", "-c", f"{command} {stdin}" if stdin.startswith("<") else f"{stdin} | {command}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return "standard input was not read" in done.stderr

    (tmp_path / "notes.txt").write_text("to be summarized")
    (tmp_path / "empty.txt").touch()
    assert warned("echo data")
    assert warned(f"<{tmp_path}/notes.txt")
    assert not warned("true")
    assert not warned(f"<{tmp_path}/empty.txt")
    assert not warned("</dev/null")
    assert not warned("<&-")


def test_input_that_is_open_but_empty_is_not_waited_for(tiny_bundle: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", str(tiny_bundle), "hi", "-n", "2", "-t", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert b"warning" not in process.stderr.read()


def test_a_dash_is_standard_input(tiny_bundle: Path) -> None:
    dash = acestep("run", tiny_bundle, "-", "-n", 5, stdin=b"hello")
    assert dash.stdout == acestep("run", tiny_bundle, "hello", "-n", 5).stdout != ""
    assert "warning" not in dash.stderr
