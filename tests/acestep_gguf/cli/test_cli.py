import json
import os
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from tests.support.command_line import PROGRAM, acestep, check_is_one_line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_info_as_table_and_as_json(tiny_bundle: Path) -> None:
    table = acestep("info", tiny_bundle).stdout
    for word in ("Q4_K_M", "Q8_0", "F32", "bits/weight", "28 x 28", "512 tokens", "float32", "default"):
        assert word in table
    facts = json.loads(acestep("info", tiny_bundle, "--json").stdout)
    assert facts["context_length"] == 512
    assert facts["image"] == {"height": 28, "width": 28, "tokens": 4}
    assert {decoder["ftype"]: decoder["default"] for decoder in facts["decoders"]} == {
        "Q4_K_M": True,
        "Q8_0": False,
        "F32": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["info"]])
def test_it_starts_fast(tiny_bundle: Path, arguments: list[str]) -> None:
    # Seconds of processor time: other programs on the machine do not count.
    seconds = []
    for _ in range(5):
        before = os.times()
        acestep(*arguments, *([tiny_bundle] if arguments == ["info"] else []))
        after = os.times()
        seconds.append(
            after.children_user - before.children_user + after.children_system - before.children_system
        )
    assert min(seconds) < 0.3


def test_info_loads_neither_llama_cpp_nor_onnxruntime(tiny_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from acestep_gguf.cli.info import info\n"
        "info(Path(sys.argv[1]), as_json=True)\n"
        "print({'numpy', 'llama_cpp', 'onnxruntime', 'PIL', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("}\nset()\n")


def test_version() -> None:
    done = acestep("--version")
    assert done.returncode == 0
    assert done.stdout.strip()[0].isdigit()


@pytest.mark.slow
def test_convert_makes_a_bundle_that_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = acestep("convert", tiny_checkpoint, out, "-q", "Q4_K_M", "--name", "Tiny")
    assert done.returncode == 0, done.stderr
    assert list(Bundle.read(out).decoders.files) == ["Q4_K_M"]
    assert acestep("convert", tiny_checkpoint, out, "-q", "q8_0", "--name", "Tiny").returncode == 0
    assert list(Bundle.read(out).decoders.files) == ["Q4_K_M", "Q8_0"]
    assert acestep("run", out, "hello", "-q", "Q8_0", "-n", 3).stdout


@pytest.mark.slow
def test_a_bundle_gets_an_mmproj_file_and_is_made_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, imported = tmp_path / "out", tmp_path / "imported"
    options = ("--name", "Tiny", "--vision", "float32")
    assert acestep("convert", tiny_checkpoint, out, "-q", "F16", *options).returncode == 0
    done = acestep("convert", tiny_checkpoint, out, "--mmproj", "q8_0", *options)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.read(out)
    assert list(bundle.decoders.files) == ["F16"]  # nobody asked for another
    pair = (out / bundle.decoder().file, out / bundle.mmproj["Q8_0"].file)
    check_is_one_line(acestep("import", *reversed(pair), imported), "no mmproj")
    check_is_one_line(acestep("import", *pair, imported, "--chat-template", "alpaca"), "vicuna, chatml")
    done = acestep("import", *pair, imported, "--vision", "float32", "--log-json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "finished"
    assert Bundle.read(imported).name == "Tiny"


# Errors: what was given, and words of the one line that says so.


@pytest.mark.slow
def test_wrong_paths(tiny_checkpoint: Path, tmp_path: Path, picture: Path) -> None:
    for verb in (["run"], ["info"]):
        question = ["x"] if verb == ["run"] else []
        check_is_one_line(acestep(*verb, tmp_path / "none", *question), "none")
        check_is_one_line(acestep(*verb, tmp_path, *question), "not a bundle")
        check_is_one_line(acestep(*verb, picture, *question), "not a folder")
        check_is_one_line(acestep(*verb, "x" * 5000, *question), "File name too long")
        check_is_one_line(acestep(*verb, tiny_checkpoint, *question), "acestep-gguf convert")
    check_is_one_line(acestep("convert", tmp_path / "none", tmp_path / "out"), "none")
    assert not (tmp_path / "out").exists()


def change_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "bundle.json").read_text())
    change(raw)
    (folder / "bundle.json").write_text(json.dumps(raw))


@pytest.mark.slow
def test_a_damaged_bundle_json(bundle_copy: Path) -> None:
    change_json(bundle_copy, lambda raw: raw.update(min_reader_version=99))
    check_is_one_line(acestep("run", bundle_copy, "x"), "upgrade")
    change_json(bundle_copy, lambda raw: raw.update(min_reader_version=1, image=None))
    check_is_one_line(acestep("run", bundle_copy, "x"), "damaged")
    for text in ("{", "[" * 100_000, ""):
        (bundle_copy / "bundle.json").write_text(text)
        check_is_one_line(acestep("info", bundle_copy), "bundle.json")


def test_files_outside_the_bundle(bundle_copy: Path) -> None:
    change_json(bundle_copy, lambda raw: raw["decoders"]["files"]["Q4_K_M"].update(file="../secret.gguf"))
    check_is_one_line(acestep("run", bundle_copy, "x"), "bare file name")


def test_a_half_written_decoder(bundle_copy: Path) -> None:
    path = bundle_copy / Bundle.read(bundle_copy).decoder().file
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    check_is_one_line(acestep("run", bundle_copy, "x"), path.name, "copy it again")
    check_is_one_line(acestep("info", bundle_copy), path.name, "copy it again")
    # As long as it should be, but the rest was never written.
    path.write_bytes(data[:1000] + bytes(len(data) - 1000))
    check_is_one_line(acestep("run", bundle_copy, "x"), path.name)


def test_a_missing_tower(bundle_copy: Path, picture: Path) -> None:
    (bundle_copy / "vision-int8.onnx.data").unlink()
    check_is_one_line(
        acestep("run", bundle_copy, "x", "--image", picture), "vision-int8.onnx.data", "missing"
    )


def test_a_decoder_that_the_bundle_has_not(tiny_bundle: Path) -> None:
    for quant in ("Q5_K_M", "Q3"):
        check_is_one_line(acestep("run", tiny_bundle, "x", "-q", quant), quant, "Q4_K_M, Q8_0, F32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["AceStepConditionGenerationModel"], "model_type": "acestep"}, ("music",)),
        ({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}, ("qwen2_vl",)),
        ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, ("bloom",)),
        ({"_class_name": "StableDiffusionPipeline"}, ("config.json",)),
        ({}, ("model_type",)),
    ],
)
def test_unsupported_checkpoints(
    tiny_checkpoint: Path, tmp_path: Path, config: dict[str, Any], words: tuple[str, ...]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in tiny_checkpoint.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    (checkpoint / "config.json").write_text(json.dumps(config))
    check_is_one_line(acestep("convert", checkpoint, tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in tiny_checkpoint.iterdir():
        data = path.read_bytes()
        (checkpoint / path.name).write_bytes(
            data[: len(data) // 2] if path.suffix == ".safetensors" else data
        )
    check_is_one_line(acestep("convert", checkpoint, tmp_path / "out"), "safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_convert_options_out_of_range(tiny_checkpoint: Path, tmp_path: Path) -> None:
    check_is_one_line(acestep("convert", tiny_checkpoint, tmp_path / "out", "-q", "Q3_X"), "Q3_X")
    check_is_one_line(acestep("convert", tiny_checkpoint, tmp_path / "out", "--image-size", 15))
    assert not (tmp_path / "out").exists()


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

    text, gif, cut, large = (tmp_path / name for name in ("text.png", "a.gif", "cut.png", "bomb.png"))
    text.write_text("no picture")
    Image.new("L", (4, 4)).save(gif)
    cut.write_bytes(picture.read_bytes()[:-30])
    large.write_bytes(bomb())
    check_is_one_line(ask(text), "JPEG, PNG or WEBP")
    check_is_one_line(ask(gif), "JPEG, PNG or WEBP")
    check_is_one_line(ask(cut), "cut.png", "damaged")
    check_is_one_line(ask(large), "million pixels")
    check_is_one_line(ask(tmp_path / "none.png"), "none.png")
    check_is_one_line(ask(tmp_path), "not a file")


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


def test_wrong_usage_is_status_2(tiny_bundle: Path) -> None:
    for arguments in (["run"], ["run", tiny_bundle, "x", "--nothing"], ["fly"]):
        done = acestep(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_run_and_info_leave_the_bundle_as_it_is(bundle_copy: Path, picture: Path) -> None:
    before = files(bundle_copy)
    acestep("run", bundle_copy, "x", "--image", picture, "-n", 3)
    acestep("info", bundle_copy)
    assert files(bundle_copy) == before


@pytest.mark.parametrize("arguments", [["run", "-t", "1"], ["info"]])
def test_a_closed_pipe_is_no_error(tiny_bundle: Path, arguments: list[str]) -> None:
    question = ["hello"] if arguments[0] == "run" else []
    with subprocess.Popen(
        [*PROGRAM, *arguments, str(tiny_bundle), *question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait(60)
        assert process.stderr.read() == b""


@pytest.mark.parametrize("verb", ["run", "info", "--version"])
@pytest.mark.parametrize(
    ("redirection", "words"),
    [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")],
)
def test_output_that_is_lost_is_an_error(tiny_bundle: Path, verb: str, redirection: str, words: str) -> None:
    arguments = {"run": ["run", tiny_bundle, "hello", "-n", "2", "-t", "1"], "info": ["info", tiny_bundle]}
    line = shlex.join([*PROGRAM, *map(str, arguments.get(verb, [verb]))])
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirection}"], capture_output=True, text=True, check=False, timeout=60
    )
    check_is_one_line(done, words)


@pytest.mark.slow
def test_quantize_plans_then_writes_then_replaces(decoder_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    options = ["--tensor-type", "ffn_up=Q6_K", "--output-tensor-type", "q5_0", "--pure", "-t", "1"]
    planned = acestep("quantize", decoder_file, out, "q4_k_m", *options, "--dry-run")
    assert planned.returncode == 0
    assert "Nothing was written." in planned.stdout
    assert not out.exists()
    for log_json in ([], ["--log-json"]):
        done = acestep("quantize", decoder_file, out, "Q4_K_M", *options, *log_json)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["plan", "finished"]
    (file,) = events[0]["files"]
    assert file["bytes"] == out.stat().st_size
    assert {"Q4_K", "Q5_0", "Q6_K", "F32"} == set(file["types"])


@pytest.mark.slow
def test_quantize_fails_in_one_line_and_writes_nothing(decoder_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    check_is_one_line(acestep("quantize", decoder_file, out, "Q3_K_M"), "Q3_K_M", "Q4_K_M")
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--tensor-type", "("), "REGEX=TYPE")
    check_is_one_line(
        acestep("quantize", decoder_file, out, "Q8_0", "--tensor-type", "atn_v=Q6_K"),
        "in the name of no tensor",
    )
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--output-tensor-type", ""), "'' is not")
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--imatrix", out), "imatrix")
    check_is_one_line(acestep("quantize", decoder_file, decoder_file, "Q8_0"), "file that is to be read")
    assert not list(tmp_path.iterdir())
