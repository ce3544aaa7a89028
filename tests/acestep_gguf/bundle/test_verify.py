import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any, cast

import pytest
from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.gguf_header import StringArray, read_gguf_header
from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import BundleReport, verify_bundle
from acestep_gguf.cli.verify import verify
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BundleError
from acestep_gguf.quantize.gguf_layout import i32s, lay_out, strings, u32
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import LOCK_FILE, journal_path
from tests.support.gguf_files import retype
from tests.support.tiny_checkpoints import TinyCheckpoint

ONNX, DATA = "vision-float32.onnx", "vision-float32.onnx.data"


def decoder_name(folder: Path, ftype: str) -> str:
    return Bundle.read(folder).decoder(ftype).file


def bad_files(report: BundleReport) -> list[str]:
    return [file.file for file in report.files if file.problems]


def change_json(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / BUNDLE_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def record_again(folder: Path, name: str) -> None:
    """Make size and hash in bundle.json fit the file, as someone would who means harm."""
    data = (folder / name).read_bytes()

    def change(content: Any) -> None:
        records = [*content["decoders"]["files"].values(), *content["vision"]["files"].values()]
        records += [record["data"] for record in records if "data" in record]
        for record in records:
            if record["file"] == name:
                record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    change_json(folder, change)


def test_a_sound_bundle(tiny_bundle: Path) -> None:
    seen: list[str] = []
    report = verify_bundle(tiny_bundle, on_file=lambda file: seen.append(file.file))
    assert report.problems == report.notes == ()
    assert seen == [file.file for file in report.files]
    assert set(seen) == {path.name for path in tiny_bundle.iterdir()}
    assert report.bundle_sha256 == hashlib.sha256((tiny_bundle / BUNDLE_FILE).read_bytes()).hexdigest()
    checks = {file.file: file.checks for file in report.files}
    assert checks[ONNX] == ("size", "graph", "sha256")
    assert checks[decoder_name(tiny_bundle, "Q8_0")] == ("size", "header", "sha256")
    quick = verify_bundle(tiny_bundle, quick=True)
    assert quick.problems == ()
    assert not any("sha256" in file.checks for file in quick.files)


def test_a_bundle_without_a_tower(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False, n_layers=1).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("Q8_0",))
    report = verify_bundle(tmp_path / "bundle")
    assert report.problems == ()
    assert len(report.files) == 2


def test_a_flipped_bit_anywhere_is_found(bundle_copy: Path) -> None:
    draw = random.Random(0)
    names = [record.file for record in Bundle.read(bundle_copy).records()]
    for _ in range(40):
        path = bundle_copy / draw.choice(names)
        position = draw.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << draw.randrange(8)]))
            file.flush()
            assert bad_files(verify_bundle(bundle_copy)) == [path.name], (path.name, position)
            file.seek(position)
            file.write(bytes([byte]))
    assert verify_bundle(bundle_copy).problems == ()


@pytest.mark.parametrize("quick", [False, True])
def test_truncated_and_missing_files(bundle_copy: Path, quick: bool) -> None:
    first, second = decoder_name(bundle_copy, "F32"), DATA
    with (bundle_copy / first).open("r+b") as file:
        file.truncate((bundle_copy / first).stat().st_size - 1)
    (bundle_copy / second).unlink()
    (bundle_copy / second).mkdir()
    report = verify_bundle(bundle_copy, quick=quick)
    assert bad_files(report) == [first, second]
    assert "half-copied" in report.problems[0]


def test_a_folder_in_the_place_of_a_file(bundle_copy: Path) -> None:
    path = bundle_copy / DATA
    path.unlink()
    path.mkdir()
    change_json(
        bundle_copy,
        lambda content: content["vision"]["files"]["float32"]["data"].update(bytes=path.stat().st_size),
    )
    assert "is not a file" in " ".join(verify_bundle(bundle_copy).problems)


def test_a_decoder_under_another_name(bundle_copy: Path) -> None:
    old = decoder_name(bundle_copy, "F32")
    (bundle_copy / old).rename(bundle_copy / "renamed.gguf")
    report = verify_bundle(bundle_copy, quick=True)
    assert bad_files(report) == [old]
    assert report.notes == ("renamed.gguf is not part of the bundle.",)


def test_swapped_decoders(bundle_copy: Path) -> None:
    one, other = (bundle_copy / decoder_name(bundle_copy, ftype) for ftype in ("Q4_K_M", "Q8_0"))
    one.rename(bundle_copy / "x")
    other.rename(one)
    (bundle_copy / "x").rename(other)
    assert bad_files(verify_bundle(bundle_copy, quick=True)) == [one.name, other.name]

    for path in (one, other):
        record_again(bundle_copy, path.name)
    report = verify_bundle(bundle_copy)
    assert bad_files(report) == [one.name, other.name]
    assert "general.file_type" in report.problems[0]


def test_a_norm_of_integers_is_found_by_whoever_opens_the_bundle(bundle_copy: Path) -> None:
    path = bundle_copy / decoder_name(bundle_copy, "F32")
    retype(path, path, {"blk.1.attn_norm.weight": QType.I32})
    record_again(bundle_copy, path.name)
    report = verify_bundle(bundle_copy)
    assert bad_files(report) == [path.name]
    assert "'blk.1.attn_norm.weight' in I32" in report.problems[0]
    with pytest.raises(BundleError, match=r"'blk\.1\.attn_norm\.weight' in I32"):
        AceStep(bundle_copy, quant="F32")


def swap_tokens(content: Any) -> None:
    tokens = content["prompt"]["control_tokens"]
    tokens["<|im_start|>"], tokens["<|im_end|>"] = tokens["<|im_end|>"], tokens["<|im_start|>"]


def change_template(content: Any) -> None:
    content["prompt"]["chat_template"] += "x"


@pytest.mark.parametrize(("change", "words"), [(swap_tokens, "<|im_"), (change_template, "chat_template")])
def test_another_vocabulary_or_template(bundle_copy: Path, change: Callable[[Any], None], words: str) -> None:
    change_json(bundle_copy, change)
    report = verify_bundle(bundle_copy, quick=True)
    assert len(bad_files(report)) == 3  # in every decoder
    assert all(words in problem for problem in report.problems)


def test_a_decoder_of_another_model_is_found_beside_sound_ones(bundle_copy: Path, tmp_path: Path) -> None:
    """The vocabulary is checked in each decoder that has not the same as one before it."""
    other = TinyCheckpoint(n_padding_rows=12, hidden_size=512).write(tmp_path / "other")
    convert_checkpoint(other, tmp_path / "bundle", ("Q8_0",))
    name = decoder_name(bundle_copy, "Q8_0")
    (tmp_path / "bundle" / decoder_name(tmp_path / "bundle", "Q8_0")).replace(bundle_copy / name)
    record_again(bundle_copy, name)
    report = verify_bundle(bundle_copy)
    assert bad_files(report) == [name]
    assert "its width is 512" in report.problems[0]


def test_external_data_outside_of_the_bundle(bundle_copy: Path) -> None:
    path = bundle_copy / ONNX
    location = DATA.encode()
    path.write_bytes(path.read_bytes().replace(location, b"../" + location[3:]))
    record_again(bundle_copy, ONNX)
    report = verify_bundle(bundle_copy)
    assert bad_files(report) == [ONNX]
    assert "another file" in report.problems[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff"])
def test_a_damaged_bundle_json(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / BUNDLE_FILE).write_bytes(content)
    report = verify_bundle(bundle_copy)
    assert bad_files(report) == [BUNDLE_FILE]
    assert report.bundle_sha256 is None


def test_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert bad_files(verify_bundle(folder)) == [BUNDLE_FILE]


def test_leftovers_and_other_files_are_named_and_no_problem(bundle_copy: Path) -> None:
    left = (partial_name("a.gguf"), journal_path(bundle_copy / "a.gguf").name, LOCK_FILE)
    for name in (*left, "README.md", ".hidden"):
        (bundle_copy / name).write_text("")
    report = verify_bundle(bundle_copy)
    assert report.problems == ()
    assert len(report.notes) == 5
    for name in left:
        assert f"{name} is left of an interrupted conversion" in " ".join(report.notes)
    for i in range(100):
        (bundle_copy / f"more{i}").write_text("")
    assert len(verify_bundle(bundle_copy).notes) < 30


def with_a_vocabulary_of(n_tokens: int, path: Path) -> None:
    """Give the decoder in ``path`` the described model's number of tokens; the weights become a hole."""
    header = read_gguf_header(path)
    known = cast(StringArray, header.metadata["tokenizer.ggml.tokens"]).read()
    types = list(cast(memoryview, header.metadata["tokenizer.ggml.token_type"]))
    tokens = [token.decode() for token in known] + [f"token{i}" for i in range(n_tokens - len(known))]
    metadata = {key: bytes(value) for key, value in header.encoded.items()}
    metadata |= {
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": i32s(types + [1] * (n_tokens - len(types))),
        "tokenizer.ggml.merges": strings([f"{token} {token}" for token in tokens]),
    }
    metadata |= {key: u32(n_tokens) for key in metadata if key.endswith("vocab_size")}
    shapes, choices = [], {}
    for tensor in header.tensors:
        rows = n_tokens if tensor.name in ("token_embd.weight", "output.weight") else tensor.dims[-1]
        shapes.append(TensorShape(tensor.name, (rows, *tensor.dims[-2::-1])))
        choices[tensor.name] = TypeChoice(QType[tensor.type.name], QType[tensor.type.name])
    layout = lay_out(metadata, shapes, choices)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.n_bytes)


def test_quick_is_quick_with_a_large_vocabulary(bundle_copy: Path) -> None:
    paths = [bundle_copy / file.file for file in Bundle.read(bundle_copy).decoders.files.values()]
    for path in paths:
        with_a_vocabulary_of(152_064, path)

    def change(content: Any) -> None:
        for record in content["decoders"]["files"].values():
            record["bytes"] = (bundle_copy / record["file"]).stat().st_size

    change_json(bundle_copy, change)
    start = process_time()
    assert verify_bundle(bundle_copy, quick=True).problems == ()
    assert process_time() - start < 3  # 0.1 for all three; a reader that makes objects takes seconds for each


def test_the_table(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(tiny_bundle, quick=False, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # a header, eight files, the hash of bundle.json, the verdict
    assert all(len(line) < 120 for line in lines)
    assert "size, graph, sha256" in lines[-4]
    assert lines[-1] == f"{tiny_bundle} is whole: 8 files"


def test_problems_are_listed_and_the_first_one_is_the_error(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [decoder_name(bundle_copy, "Q8_0"), DATA]
    for name in names:
        (bundle_copy / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"{names[0]} has 0 bytes.*1 more"):
        verify(bundle_copy, quick=False, as_json=False)
    printed = capsys.readouterr().out
    assert printed.count("FAILED") == printed.count("has 0 bytes") == 2

    with pytest.raises(BundleError, match=names[0]):
        verify(bundle_copy, quick=False, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is False
    assert [file["file"] for file in content["files"] if file["problems"]] == names


def test_names_that_would_write_to_the_terminal(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle_copy / "a\x1b[2J\nb").write_text("")
    verify(bundle_copy, quick=True, as_json=False)
    printed = capsys.readouterr().out
    assert "a?[2J?b" in printed
    assert "\x1b" not in printed
