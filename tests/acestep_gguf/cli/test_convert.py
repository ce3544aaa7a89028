"""``convert`` from the command line, and ``import`` of what it wrote."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.demo.questions import CHECKPOINT, read_questions
from acestep_gguf.quality.bundled import read_from_bundle
from tests.support.command_line import acestep, check_is_one_line
from tests.support.tiny_checkpoints import TinyCheckpoint


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acestep_gguf.cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("filelock", "acestep_gguf.quantize.requantize"),
        ("onnx", "acestep_gguf.convert"),
        ("gguf", "acestep_gguf.convert"),
        ("gguf", "acestep_gguf.convert.llama_cpp.gguf_import"),
        ("gguf", "acestep_gguf.quantize.requantize"),
    ],
)
def test_without_the_convert_extra_one_line_says_what_to_install(package: str, module: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "acestep_gguf.errors.MissingPackageError: "
        f"this needs the {package} package: pip install 'acestep-gguf[convert]'."
    )


def test_a_dry_run_writes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = convert(tiny_checkpoint, tmp_path / "out", "-q", "Q4_K_M", "--dry-run", "--pure")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Nothing was written.\n")
    assert "Q6_K" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quiet_without_a_terminal_but_for_the_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = convert(tiny_checkpoint, tmp_path / "out", "-q", "Q8_0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'out'} is ready: ")
    done = convert(tiny_checkpoint, tmp_path / "out", "-q", "Q8_0")
    assert done.stdout == f"{tmp_path / 'out'} has everything already.\n"


def test_a_bundle_gets_nothing_that_nobody_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(tiny_checkpoint, out, "-q", "Q8_0", "--vision", "int8").returncode == 0
    for options in ([], ["--report"]):
        done = convert(tiny_checkpoint, out, *options, "--dry-run")
        assert done.stdout == f"{out} has everything already.\n"
    for option, files in (("--prefill", 2), ("--mmproj=F16", 1), ("--quant=Q6_K", 1)):
        plan = json.loads(convert(tiny_checkpoint, out, option, "--dry-run", "--log-json").stdout)
        assert len(plan["files"]) == files, plan["files"]
    done = convert(tiny_checkpoint, out, "--calibration", tmp_path / "missing")
    check_is_one_line(done, "gets no int8 tower now, so --calibration changes nothing")


@pytest.mark.slow
def test_a_report_goes_into_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = convert(tiny_checkpoint, out, "-q", "F32", "-q", "Q4_K_M", "--vision", "float32", "--report")
    assert done.returncode == 0, done.stderr
    assert "asking Q4_K_M" in done.stderr
    table = done.stdout[done.stdout.index("decoder ") :]
    assert table.splitlines()[1].startswith("F32")
    report = read_from_bundle(out, Bundle.read(out))
    assert report is not None
    assert len(report.asked) == len(read_questions(CHECKPOINT))
    assert verify_bundle(out).problems == ()

    done = convert(tiny_checkpoint, out, "-q", "Q8_0", "--report", "--log-json")
    report_written, last = map(json.loads, done.stdout.splitlines()[-2:])
    assert (report_written["event"], report_written["file"]) == ("file", "quality.json")
    assert last["event"] == "finished"
    assert last["seconds"] > report_written["seconds"]
    assert done.stdout.count('"finished"') == 1
    again = read_from_bundle(out, Bundle.read(out))
    assert again is not None
    assert {found.decoder for found in again.candidates} == {"F32", "Q8_0", "Q4_K_M"}


def test_no_report_of_a_decoder_alone(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False).write(tmp_path / "tiny")
    done = convert(checkpoint, tmp_path / "out", "-q", "Q8_0", "--report")
    assert done.returncode == 1
    assert "is ready, but --report asks about pictures" in done.stderr
    assert Bundle.read(tmp_path / "out").quality is None


def test_json_lines_of_a_conversion(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = convert(tiny_checkpoint, tmp_path / "out", "-q", "Q8_0", "--log-json")
    assert (done.returncode, done.stderr) == (0, "")
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    files = ["file"] * 5  # the decoder, and graph and weights of two towers
    assert names == ["plan", *["progress"] * names.count("progress"), *files, "finished"]
    assert events[names.index("file") - 1]["bytes_written"] == events[0]["bytes_needed"]
    assert {event["file"] for event in events if event["event"] == "file"} == {
        file["file"] for file in events[0]["files"]
    }


def test_an_error_is_one_line_and_no_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = convert(tiny_checkpoint, tmp_path / "out", "--tensor-type", "attn_v")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'attn_v' is not a pattern and a type, REGEX=TYPE")
    assert done.stderr.count("\n") == 1


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

    alone = tmp_path / "alone"
    check_is_one_line(acestep("import", *pair, pair[0], alone), "3 files were given: give a decoder, or")
    done = acestep("import", pair[0], alone, "--image-token", "<image>")
    check_is_one_line(done, "--image-token is about pictures")
    assert acestep("import", pair[0], alone).returncode == 0
    assert acestep("run", alone, "hello", "-n", 3).stdout
    check_is_one_line(acestep("run", alone, "hello", "--image", tmp_path / "any.png"), "no vision tower")


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


def test_options_that_say_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = acestep("convert", tiny_checkpoint, tmp_path / "out", "--class-token-first")
    check_is_one_line(done, "give --mmproj, too")
    for arguments in ((tiny_checkpoint, ""), (tiny_checkpoint, tmp_path / "out", "--name", " ")):
        done = acestep("convert", *arguments)
        assert (done.returncode, "is empty" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_convert_options_out_of_range(tiny_checkpoint: Path, tmp_path: Path) -> None:
    check_is_one_line(acestep("convert", tiny_checkpoint, tmp_path / "out", "-q", "Q3_X"), "Q3_X")
    check_is_one_line(acestep("convert", tiny_checkpoint, tmp_path / "out", "--image-size", 15))
    assert not (tmp_path / "out").exists()
