"""``quantize`` from the command line."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import acestep, check_is_one_line


@pytest.mark.slow
def test_quantize_plans_then_writes_then_replaces(decoder_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    (types := tmp_path / "types.txt").write_text("attn_v=Q8_0\nffn_up=F16")
    options = [
        "--tensor-type",
        "ffn_up=Q6_K",
        "--tensor-type-file",
        types,
        "--output-tensor-type",
        "q5_0",
        "--pure",
        "-t",
        "1",
    ]
    planned = acestep("quantize", decoder_file, out, "q4_k_m", *options, "--dry-run")
    assert planned.returncode == 0
    assert "Nothing was written." in planned.stdout
    assert not out.exists()
    for log_json in ([], ["--log-json"]):
        done = acestep("quantize", decoder_file, out, "Q4_K_M", *options, *log_json)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "types.txt"]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["plan", "finished"]
    (file,) = events[0]["files"]
    assert file["bytes"] == out.stat().st_size
    assert {"Q4_K", "Q5_0", "Q6_K", "Q8_0", "F32"} == set(file["types"])


@pytest.mark.slow
def test_quantize_fails_in_one_line_and_writes_nothing(decoder_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    check_is_one_line(acestep("quantize", decoder_file, out, "TQ1_0"), "TQ1_0", "Q4_K_M")
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--tensor-type", "("), "REGEX=TYPE")
    check_is_one_line(
        acestep("quantize", decoder_file, out, "Q8_0", "--tensor-type", "atn_v=Q6_K"),
        "in the name of no tensor",
    )
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--output-tensor-type", ""), "'' is not")
    check_is_one_line(
        acestep("quantize", decoder_file, out, "Q8_0", "--tensor-type-file", "none.txt"), "none.txt cannot"
    )
    check_is_one_line(acestep("quantize", decoder_file, out, "IQ2_XS"), "give one with --imatrix FILE")
    check_is_one_line(acestep("quantize", decoder_file, out, "Q8_0", "--imatrix", out), "imatrix")
    check_is_one_line(acestep("quantize", decoder_file, decoder_file, "Q8_0"), "file that is to be read")
    assert not list(tmp_path.iterdir())
