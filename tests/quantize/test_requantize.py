"""Whole files, byte for byte what llama-quantize makes of the same source."""

import hashlib
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.errors import BundleError, ImatrixError, UsageError
from acestep_gguf.quantize.conversion_events import Event, FileDone, Finished, Planned, Progress
from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf
from acestep_gguf.quantize.steering import parse_steering
from tests.quantize.conftest import MakeSource
from tests.support.imatrix_files import legacy_bytes, legacy_entry, random_sums, write_gguf_imatrix
from tests.support.llama_quantize import llama_quantize, read_tensors

# Shapes that hit the rules of the recipes, as in test_one_pass.py, and a source type for each.
SHAPES: dict[str, tuple[Ftype, dict[str, Any]]] = {
    "more bits": ("F16", {"n_layers": 8, "intermediate_size": 256}),
    "tied": ("BF16", {"n_layers": 3, "tied": True}),
    "rows of 32": (
        "F16",
        {"n_layers": 3, "hidden_size": 288, "n_heads": 6, "n_kv_heads": 3, "intermediate_size": 512},
    ),
    "rows of 8": (
        "F32",
        {"n_layers": 2, "hidden_size": 48, "n_heads": 2, "n_kv_heads": 1, "intermediate_size": 72},
    ),
}
FTYPES: tuple[Ftype, ...] = ("Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16", "F32")
STEERINGS: dict[str, tuple[dict[str, QType], dict[str, Any]]] = {
    "tensor types": (
        {r"blk\.(0|3)\.attn_v": QType.Q8_0, "ffn_(down|up)": QType.IQ4_XS, "attn_q.weight": QType.F16},
        {},
    ),
    "more tensor types": (
        {"attn_q": QType.Q2_K, "attn_k": QType.Q3_K, "attn_v": QType.Q4_0, "attn_output": QType.Q4_1,
         "ffn_up": QType.Q5_0, "ffn_gate": QType.Q5_1, "ffn_down": QType.IQ4_NL},
        {},
    ),
    "the first match": (
        {"ffn": QType.Q6_K, "ffn_down": QType.Q8_0, "^blk.1.": QType.BF16, "out": QType.F32}, {},
    ),
    "pure": ({}, {"pure": True}),
    "pure, with exceptions": ({"attn_v": QType.Q6_K}, {"pure": True, "output_tensor_type": QType.Q8_0}),
    "output": ({"output": QType.Q5_0}, {"output_tensor_type": QType.Q5_K}),
    "embeddings": ({"token": QType.Q4_0}, {"token_embedding_type": QType.Q8_0}),
    "output and embeddings": (
        {}, {"output_tensor_type": QType.F16, "token_embedding_type": QType.Q3_K},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_is_byte_for_byte_llama_quantizes(
    tmp_path: Path, make_source: MakeSource, shape: str
) -> None:
    source_ftype, options = SHAPES[shape]
    source = make_source(source_ftype, **options)
    for ftype in FTYPES:
        quantize_gguf(source, tmp_path / "ours.gguf", ftype)
        expected = llama_quantize(source, tmp_path / "expected.gguf", ftype).read_bytes()
        assert (tmp_path / "ours.gguf").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("steering", STEERINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_steered_files_are_byte_for_byte_llama_quantizes(
    tmp_path: Path, make_source: MakeSource, steering: str, tied: bool
) -> None:
    source = make_source(n_layers=5, intermediate_size=256, tied=tied)
    rules, options = STEERINGS[steering]
    ours = parse_steering(
        [f"{pattern}={qtype.name}" for pattern, qtype in rules.items()],
        *(qtype and qtype.name for qtype in map(options.get, ("output_tensor_type", "token_embedding_type"))),
        pure=options.get("pure", False),
    )
    for ftype in ("Q4_K_M", "Q8_0", "F16"):
        quantize_gguf(source, tmp_path / "ours.gguf", ftype, steering=ours)
        expected = llama_quantize(source, tmp_path / "expected.gguf", ftype, tensor_types=rules, **options)
        assert (tmp_path / "ours.gguf").read_bytes() == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "is_gguf"), [("more bits", True), ("rows of 32", False)])
def test_files_made_with_an_imatrix_are_byte_for_byte_llama_quantizes(
    tmp_path: Path, make_source: MakeSource, shape: str, is_gguf: bool
) -> None:
    source = make_source("F16", **SHAPES[shape][1])
    sums, counts = random_sums(source)
    imatrix = tmp_path / "imatrix"
    if is_gguf:
        write_gguf_imatrix(imatrix, sums, counts, n_chunks=7, datasets=["wiki.train.raw", "second"])
        means = {
            name: sums[name] / np.float32(counts[name]) if counts[name] else np.ones_like(sums[name])
            for name in sums
        }
    else:
        entries = [legacy_entry(name.encode(), int(counts[name]), sums[name]) for name in sums]
        imatrix.write_bytes(legacy_bytes(entries, struct.pack("<ii", 7, 14) + b"wiki.train.raw"))
        means = {name: sums[name] / np.float32(counts[name] or 1) for name in sums}
    overrides: dict[str, int | str] = {
        "quantize.imatrix.file": str(imatrix)[:127],
        "quantize.imatrix.dataset": "wiki.train.raw",
        "quantize.imatrix.entries_count": len(sums),
        "quantize.imatrix.chunks_count": 7,
    }
    plain = read_tensors(llama_quantize(source, tmp_path / "plain.gguf", "Q4_K_M"))
    for ftype in ("Q4_K_M", "Q5_K_M", "Q8_0"):
        quantize_gguf(source, tmp_path / "ours.gguf", ftype, imatrix=imatrix)
        expected = llama_quantize(
            source, tmp_path / "expected.gguf", ftype, imatrix=means, overrides=overrides
        )
        assert (tmp_path / "ours.gguf").read_bytes() == expected.read_bytes()
        (told,) = plan_quantization(source, tmp_path / "ours.gguf", ftype, imatrix=imatrix).files
        assert set(told.unweighed) == {"output.weight", "token_embd.weight"}
        if ftype == "Q4_K_M":  # it does change something
            assert sum(plain[name] != ours for name, ours in read_tensors(expected).items()) > 5


def test_every_type_weighs_as_llama_quantize_does(tmp_path: Path, make_source: MakeSource) -> None:
    source = make_source(n_layers=5, intermediate_size=256)
    sums, counts = random_sums(source)
    imatrix = write_gguf_imatrix(tmp_path / "imatrix", sums, dict.fromkeys(counts, 4.0))
    means = {name: values / np.float32(4) for name, values in sums.items()}
    rules, _ = STEERINGS["more tensor types"]
    steering = parse_steering([f"{pattern}={qtype.name}" for pattern, qtype in rules.items()])
    quantize_gguf(source, tmp_path / "ours.gguf", "Q4_K_M", steering=steering, imatrix=imatrix)
    llama_quantize(source, tmp_path / "expected.gguf", "Q4_K_M", tensor_types=rules, imatrix=means)
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "expected.gguf")


def test_quantizing_again_needs_permission_and_copies_what_keeps_its_type(
    tmp_path: Path, make_source: MakeSource
) -> None:
    source = make_source("Q5_K_M", n_layers=5, intermediate_size=256)
    with pytest.raises(
        UsageError, match=r"quantized already \(token_embd.weight is Q5_K\).*allow_requantize=True"
    ):
        quantize_gguf(source, tmp_path / "ours.gguf", "Q4_K_M")
    assert not list(tmp_path.iterdir())
    for ftype in ("Q4_K_M", "Q5_K_M", "Q8_0", "F16"):  # Q6_K stays Q6_K in the first
        quantize_gguf(source, tmp_path / "ours.gguf", ftype, allow_requantize=True)
        expected = llama_quantize(source, tmp_path / "expected.gguf", ftype, allow_requantize=True)
        assert (tmp_path / "ours.gguf").read_bytes() == expected.read_bytes()
    # Nothing changes its type, so nothing is lost.
    quantize_gguf(source, tmp_path / "ours.gguf", "Q5_K_M")
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(source)


def test_what_is_planned_is_what_is_written_and_planning_writes_nothing(
    tmp_path: Path, make_source: MakeSource
) -> None:
    source, out = make_source("F16", **SHAPES["rows of 32"][1]), tmp_path / "a" / "out.gguf"
    planned = plan_quantization(source, out, "Q4_K_M")
    assert not list(tmp_path.iterdir())
    events: list[Event] = []
    quantize_gguf(source, out, "Q4_K_M", on_event=events.append)
    assert isinstance(events[0], Planned)
    # Other processes fill and empty the disk meanwhile.
    assert replace(events[0], bytes_free=planned.bytes_free) == planned
    (file,) = planned.files
    assert out.stat().st_size == file.bytes == planned.bytes_needed
    types = Counter(qtype for qtype, _ in read_tensors(out).values())
    assert file.types == dict(types)
    assert file.fallbacks == {"Q4_K -> Q5_0": types["Q5_0"], "Q6_K -> Q8_0": 1}
    *progress, done, finished = events[1:]
    assert all(isinstance(event, Progress) for event in progress)
    assert progress[-1] == Progress(
        bytes_written=file.bytes,
        bytes_total=file.bytes,
        tensors_written=types.total(),
        tensors_total=types.total(),
    )
    assert isinstance(done, FileDone)
    assert (done.bytes, done.sha256) == (file.bytes, hashlib.sha256(out.read_bytes()).hexdigest())
    assert isinstance(finished, Finished)
    assert (finished.folder, finished.file) == (str(out.parent), out.name)


@pytest.mark.parametrize("out", ["x" * 300, "x/" * 2500])
def test_output_files_that_cannot_be_are_refused(tmp_path: Path, make_source: MakeSource, out: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be made \(File name too long\): name another file"):
        quantize_gguf(make_source(), tmp_path / out, "Q8_0")


def test_what_was_interrupted_is_carried_on_with(tmp_path: Path, make_source: MakeSource) -> None:
    source, out = make_source(), tmp_path / "out.gguf"

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.tensors_written == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_gguf(source, out, "Q4_K_M", on_event=stop)
    assert not out.exists()
    (kept,) = plan_quantization(source, out, "Q4_K_M").files
    assert 0 < kept.bytes_kept < kept.bytes
    events: list[Event] = []
    quantize_gguf(source, out, "Q4_K_M", on_event=events.append)
    first = events[1]
    assert isinstance(first, Progress)
    assert first.tensors_written >= 8
    quantize_gguf(source, tmp_path / "again.gguf", "Q4_K_M")
    assert out.read_bytes() == (tmp_path / "again.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gguf", "out.gguf"]


def test_a_finished_file_outlives_a_journal_whose_partial_file_was_lost(
    tmp_path: Path, make_source: MakeSource
) -> None:
    source, out = make_source(), tmp_path / "out.gguf"
    quantize_gguf(source, out, "Q8_0")
    finished = out.read_bytes()

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.tensors_written == 9:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quantize_gguf(source, out, "Q4_K_M", on_event=stop)
        assert out.read_bytes() == finished
        (tmp_path / ".out.gguf.partial").unlink()


def test_the_source_is_never_written_to(tmp_path: Path, make_source: MakeSource) -> None:
    source = make_source()
    content = source.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    for out in (source, link, tmp_path):
        with pytest.raises(UsageError, match="or the file that is to be read"):
            quantize_gguf(source, out, "Q8_0")
    assert source.read_bytes() == content


def test_a_file_that_is_there_is_replaced_only_when_the_new_one_is_whole(
    tmp_path: Path, make_source: MakeSource
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF old")
    source = tmp_path / "source.gguf"
    source.write_bytes(make_source().read_bytes())
    last = read_gguf_header(source).tensors[-1]
    content = bytearray(source.read_bytes())
    content[last.offset : last.offset + 4] = struct.pack("<f", np.nan)
    source.write_bytes(content)
    with pytest.raises(BundleError, match=f"tensor '{last.name}' has NaN or infinite weights"):
        quantize_gguf(source, out, "Q8_0")
    assert out.read_bytes() == b"GGUF old"
    quantize_gguf(make_source(), out, "Q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "source.gguf"]
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ftype": "TQ1_0"}, UsageError, "'TQ1_0' is not a file type that can be made"),
        ({"imatrix": Path("missing.gguf")}, ImatrixError, "cannot be read"),
        ({"source": Path("missing.gguf")}, BundleError, "cannot be read"),
        ({"source": Path("/dev/zero")}, BundleError, "is not a file"),
        ({"threads": 0}, UsageError, "0 threads were asked for"),
    ],
)
def test_wrong_arguments_are_one_clear_error(
    tmp_path: Path, make_source: MakeSource, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"source": make_source(), "out": tmp_path / "out.gguf", "ftype": "Q8_0", **options}
    with pytest.raises(error, match=message):
        quantize_gguf(**arguments)
    assert not list(tmp_path.iterdir())


def test_another_kind_of_file_is_not_replaced(tmp_path: Path, make_source: MakeSource) -> None:
    out = tmp_path / "picture.png"
    out.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        plan_quantization(make_source(), out, "Q8_0")
    assert out.read_bytes() == b"\x89PNG\r\n\x1a\n"
    out.write_bytes(b"")  # as mktemp leaves it
    quantize_gguf(make_source(), out, "Q8_0")
    assert out.stat().st_size > 1000


def test_an_imatrix_of_another_model_is_refused(tmp_path: Path, make_source: MakeSource) -> None:
    sums, counts = random_sums(make_source(n_layers=2, hidden_size=128))
    imatrix = write_gguf_imatrix(tmp_path / "imatrix", sums, counts)
    with pytest.raises(ImatrixError, match="is of another model"):
        quantize_gguf(make_source(), tmp_path / "out.gguf", "Q4_K_M", imatrix=imatrix)
    assert not (tmp_path / "out.gguf").exists()
