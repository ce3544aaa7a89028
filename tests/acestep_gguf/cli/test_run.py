"""``run``, and what a hand does at its prompt."""

import json
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.command_line import PROGRAM, acestep, check_is_one_line


def test_an_answer_streams_to_stdout_and_statistics_to_stderr(tiny_bundle: Path, picture: Path) -> None:
    arguments = ("run", tiny_bundle, "What is this?", "--image", picture, "--image", picture, "-n", 12)
    plain = acestep(*arguments)
    assert plain.returncode == 0
    plan, statistics = plain.stderr.splitlines()
    assert plan.startswith("[plan: ")
    assert "tokens/s" in statistics
    as_json = acestep(*arguments, "--json")
    assert as_json.stderr == ""
    answer = json.loads(as_json.stdout)
    assert plain.stdout == answer["text"] + "\n"
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["usage"]["image_tokens"] == 8
    assert answer["usage"]["completion_tokens"] <= 12
    assert set(answer["timings"]) >= {"load_s", "image_s", "prefill_s", "decode_s"}


def test_llama_cpps_log(tiny_bundle: Path) -> None:
    done = acestep("run", tiny_bundle, "hi", "-n", 2, "-v")
    assert "general.architecture" in done.stderr
    assert "tokens/s" in done.stderr
    quiet = acestep("run", tiny_bundle, "hi", "-n", 2, "-v", "--quiet")
    assert "general.architecture" in quiet.stderr
    assert "tokens/s" not in quiet.stderr
    assert quiet.stdout == done.stdout


def test_the_question_may_come_from_standard_input(tiny_bundle: Path) -> None:
    by_argument = acestep("run", tiny_bundle, "Größe?", "-n", 8)
    by_stdin = acestep("run", tiny_bundle, "-n", 8, stdin="Größe?\n".encode())
    assert by_argument.stdout == by_stdin.stdout != ""


@pytest.mark.slow
def test_the_options_of_llama_cpp(tiny_bundle: Path) -> None:
    options = "-q f32 --temp 2 --top-k 9 --top-p 0.9 --min-p 0 -s 7 --repeat-penalty 1.2 -c 128 -b 64 -ub 32"
    more = "-ngl 0 -ctk f32 -ctv f32 -fa off -sys brief --n-predict 9 --json"
    arguments = ("run", tiny_bundle, "hello", *options.split(), *more.split())
    first, second = (json.loads(acestep(*arguments).stdout) for _ in range(2))
    assert first["text"] == second["text"]
    other = json.loads(acestep(*arguments, "--seed", 8).stdout)
    assert other["text"] != first["text"]


def test_a_missing_tower(bundle_copy: Path, picture: Path) -> None:
    (bundle_copy / "vision-int8.onnx.data").unlink()
    check_is_one_line(
        acestep("run", bundle_copy, "x", "--image", picture), "vision-int8.onnx.data", "missing"
    )


def test_a_decoder_that_the_bundle_has_not(tiny_bundle: Path) -> None:
    for quant in ("Q5_K_M", "Q3"):
        check_is_one_line(acestep("run", tiny_bundle, "x", "-q", quant), quant, "Q4_K_M, Q8_0, F32")


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999)))


@pytest.mark.slow
def test_what_is_no_picture(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    def ask(path: Path) -> subprocess.CompletedProcess[str]:
        return acestep("run", tiny_bundle, "x", "--image", path)

    text, ppm, cut, large = (tmp_path / name for name in ("text.png", "a.ppm", "cut.png", "bomb.png"))
    text.write_text("no picture")
    Image.new("L", (4, 4)).save(ppm)
    cut.write_bytes(picture.read_bytes()[:-30])
    large.write_bytes(bomb())
    check_is_one_line(ask(text), "JPEG, PNG, WEBP")
    check_is_one_line(ask(ppm), "JPEG, PNG, WEBP")
    check_is_one_line(ask(cut), "cut.png", "damaged")
    check_is_one_line(ask(large), "million pixels")
    check_is_one_line(ask(tmp_path / "none.png"), "none.png")


@pytest.mark.slow
def test_prompts_that_do_not_fit(tiny_bundle: Path, picture: Path) -> None:
    check_is_one_line(acestep("run", tiny_bundle, stdin=b"word " * 2000), "context holds 512")
    small = acestep("run", tiny_bundle, "x", "--image", picture, "-c", 8)
    check_is_one_line(small, "context holds 8", "raise --ctx-size, up to 512")


@pytest.mark.slow
def test_questions_that_are_none(tiny_bundle: Path) -> None:
    for question in ([], [""], [" \n"]):
        check_is_one_line(acestep("run", tiny_bundle, *question), "empty")
    check_is_one_line(acestep("run", tiny_bundle, stdin=b"\xff\xfe"), "UTF-8")
    check_is_one_line(acestep("run", tiny_bundle, stdin=b"x" * (5 << 20)), "longer than")


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "-c 0",
        "-t 0",
        "-n 0",
        "--temp -1",
        "--top-p 2",
        "-s -5",
        "-ctv q8_0 -fa off",
        "--temp nan",
        "-ctk foo",
        "-fa maybe",
        "-c 513",
    ],
)
def test_settings_out_of_range(tiny_bundle: Path, option: str) -> None:
    check_is_one_line(acestep("run", tiny_bundle, "x", *option.split()))


def test_a_picture_is_no_question(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    other = shutil.copy(picture, tmp_path / "b c.jpg")
    for question in ([], ["What is this?"]):
        done = acestep("run", tiny_bundle, other, "--image", picture, *question)
        check_is_one_line(done, f"{other} is a file, not a question", "-i a.png b.png")


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


@pytest.mark.parametrize("option", ["--image", "--embeds", "[BUNDLE]"])
def test_an_empty_path_is_not_the_current_folder(tiny_bundle: Path, option: str) -> None:
    arguments = ["", "hi"] if option == "[BUNDLE]" else [tiny_bundle, "hi", option, ""]
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


def test_the_question_as_llama_cpp_takes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text("What is this?\n")
    ways = (["What is this?"], ["-p", "What is this?"], ["--file", file])
    done = [acestep("run", tiny_bundle, *way, "-n", 4, "--quiet") for way in ways]
    assert done[0].stdout == done[1].stdout == done[2].stdout != "\n"
    assert {each.stderr for each in done} == {""}
    check_is_one_line(acestep("run", tiny_bundle, "hi", "-p", "hi"), "two questions")
    check_is_one_line(acestep("run", tiny_bundle, "-f", file, "-p", "hi"), "two questions")
    check_is_one_line(acestep("run", tiny_bundle, "-p", " "), "the question is empty")
    check_is_one_line(acestep("run", tiny_bundle, "-f", tmp_path), "cannot be read")
    file.write_bytes(b"\xff")
    check_is_one_line(acestep("run", tiny_bundle, "-f", file), f"the question in {file} is not UTF-8")


def test_length_seed_and_stop_as_llama_cpp_takes_them(tiny_bundle: Path) -> None:
    def answer(*options: object) -> dict[str, Any]:
        done = acestep("run", tiny_bundle, "hi", "--json", *options)
        return dict(json.loads(done.stdout))

    full = answer("-n", -1, "-c", 64)
    assert full["usage"]["prompt_tokens"] + full["usage"]["completion_tokens"] >= 64 or (
        full["finish_reason"] == "stop"
    )
    drawn = ["--temp", 5, "--top-k", 0, "--top-p", 1, "--min-p", 0, "-n", 8]
    first, second = answer(*drawn, "-s", -1), answer(*drawn, "-s", -1)
    assert first["text"] != second["text"]
    again = acestep("run", tiny_bundle, "hi", *drawn, "-s", first["seed"])
    assert again.stdout == first["text"] + "\n"
    assert f" | seed {first['seed']} | " in again.stderr
    text = answer("-n", 8)["text"]
    assert answer("-n", 8, "--stop", "not in it", "--stop", text[1:])["text"] == text[:1]
