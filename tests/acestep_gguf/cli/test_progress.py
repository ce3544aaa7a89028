"""What a conversion shows while it runs and at its end."""

import io
import json
import os
from dataclasses import replace

import pytest
from rich.console import Console

from acestep_gguf.cli.progress import Bar, JsonLines, Report
from acestep_gguf.quantize.conversion_events import FileDone, Finished, Planned, PlannedFile, Progress

DECODER = PlannedFile(
    file="Tiny-Q4_K_M.gguf",
    label="Q4_K_M",
    bytes=3_600_000,
    bytes_kept=1_200_000,
    bits_per_weight=5.1,
    types={"Q4_K": 13, "Q6_K": 3},
    fallbacks={"Q6_K -> Q8_0": 2},
)
PLAN = Planned(
    folder="out", files=(DECODER,), bytes_needed=3_600_000, bytes_free=5_000_000_000, memory=600_000_000
)


def progress(n_bytes: int) -> Progress:
    return Progress(bytes_written=n_bytes, bytes_total=100_000_000, tensors_written=0, tensors_total=5)


def test_the_table_of_a_plan() -> None:
    report = Report()
    report.add(PLAN)
    assert str(report).splitlines() == [
        "file                 size  bits/weight  seconds  types",
        "Tiny-Q4_K_M.gguf  3.60 MB         5.10           13 Q4_K, 3 Q6_K (rows do not fit: 2 Q6_K -> Q8_0)",
        "disk: 3.60 MB needed, 5.00 GB free",
        "1.20 MB are there from an interrupted conversion",
        "memory: about 600.00 MB",
        "Nothing was written.",
    ]


def test_the_table_of_what_was_done() -> None:
    report = Report()
    for event in (
        PLAN,
        FileDone(file=DECODER.file, bytes=DECODER.bytes, sha256="0" * 64, seconds=1.23),
        Finished(folder="out", seconds=2.0),
    ):
        report.add(event)
    _, row, last = str(report).splitlines()
    assert row.split()[:5] == ["Tiny-Q4_K_M.gguf", "3.60", "MB", "5.10", "1.2"]
    assert last == "out is ready: 3.60 MB written in 2.0 seconds."


def test_a_line_tells_that_the_checkpoint_was_quantized_before() -> None:
    report = Report()
    report.add(replace(PLAN, source_quantization="AWQ 4-bit, groups of 128"))
    assert str(report).splitlines()[2] == (
        "the checkpoint is quantized already (AWQ 4-bit, groups of 128): the decoders are quantized twice"
    )


def test_the_last_line_names_the_file_that_quantize_wrote() -> None:
    report = Report()
    report.add(PLAN)
    report.add(Finished(folder="out", file=DECODER.file, seconds=2.0))
    assert str(report).splitlines()[-1] == "out/Tiny-Q4_K_M.gguf is ready: 3.60 MB written in 2.0 seconds."


def test_the_bar_shows_bytes_speed_and_time_left_on_a_terminal_only() -> None:
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
        with Bar(console) as bar:
            for n_bytes in (30_000_000, 60_000_000, 100_000_000):
                bar.show(progress(n_bytes))
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        assert ("100.0/100.0 MB" in shown and "0:00:00" in shown) is is_terminal
        assert is_terminal or shown == ""


def test_json_lines_come_at_a_bounded_rate(capsys: pytest.CaptureFixture[str]) -> None:
    show = JsonLines()
    show(PLAN)
    for n_bytes in range(0, 10_000_000, 1000):
        show(progress(n_bytes))
    show(Finished(folder="out", seconds=2.0))
    plan, *lines, finished = map(json.loads, capsys.readouterr().out.splitlines())
    assert 1 <= len(lines) <= 10
    assert lines[0] == {
        "event": "progress",
        "bytes_written": 0,
        "bytes_total": 100_000_000,
        "tensors_written": 0,
        "tensors_total": 5,
    }
    assert plan["event"] == "plan"
    assert plan["files"][0]["fallbacks"] == {"Q6_K -> Q8_0": 2}
    assert finished == {"event": "finished", "folder": "out", "seconds": 2.0, "file": None}


def test_json_lines_tell_paths_that_are_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.fsdecode(b"out\xff")
    JsonLines()(Finished(folder=folder, seconds=2.0))
    assert json.loads(capsys.readouterr().out)["folder"] == folder
