"""Reading decoder files row by row, and refusing those that are damaged or of another kind."""

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, read_gguf_header
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import AceStepError, BundleError, SourceLostError, UnsupportedModelError
from acestep_gguf.quantize.gguf_source import GgufSource
from acestep_gguf.quantize.requantize import quantize_gguf
from tests.quantize.conftest import MakeSource
from tests.support.llama_quantize import llama_quantize, read_tensors

Change = Callable[[gguf.GGUFWriter, dict[str, Any]], None]


@pytest.fixture
def decoder(bundle_copy: Path) -> Path:
    return bundle_copy / Bundle.read(bundle_copy).decoder("Q4_K_M").file


def test_tensors_are_gguf_pys_in_llama_quantizes_order(decoder: Path) -> None:
    expected = {tensor.name: tensor for tensor in GGUFReader(decoder).tensors}
    with GgufSource(decoder) as source:
        names = [tensor.name for tensor in source.tensors]
        assert names.index("token_embd.weight") < names.index("blk.0.attn_k.bias")
        assert names.index("blk.0.ffn_up.weight") < names.index("blk.1.attn_k.bias")
        assert set(names) == expected.keys()
        for tensor in source.tensors:
            theirs = expected[tensor.name]
            assert (tensor.qtype, list(tensor.shape)) == (theirs.tensor_type, theirs.shape.tolist()[::-1])
            n_rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
            weights = dequantize(theirs.data, theirs.tensor_type).reshape(n_rows, -1)
            np.testing.assert_array_equal(tensor.read_rows(0, n_rows), weights)
            np.testing.assert_array_equal(tensor.read_rows(n_rows - 1, n_rows), weights[-1:])
            assert tensor.read_blocks(0, n_rows).tobytes() == theirs.data.tobytes()


def test_integers_are_no_weights(decoder: Path) -> None:
    with GgufSource(decoder) as source:
        info = replace(source.header.tensors[0], type=TENSOR_TYPES[QType.I32])
        with pytest.raises(BundleError, match="I32, which cannot hold weights"):
            source.tensor(info)


def test_a_file_that_shrinks_is_lost(decoder: Path) -> None:
    with GgufSource(decoder) as source:
        os.truncate(decoder, 10_000)
        tensor = max(source.tensors, key=lambda tensor: tensor.offset)
        with pytest.raises(SourceLostError, match=r"was lost \(it ended early\): bring it back"):
            tensor.read_rows(0, 1)


def test_the_stamp_tells_when_a_file_was_replaced(decoder: Path) -> None:
    with GgufSource(decoder) as source:
        first = source.stamp
    os.utime(decoder, ns=(1, 1))
    with GgufSource(decoder) as source:
        assert source.stamp != first


def write_decoder(path: Path, source: Path, change: Change) -> Path:
    """``source`` written again by gguf-py, with ``change`` made to its tensors, or keys added."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(writer, tensors)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rename(old: str, new: str) -> Change:
    return lambda _, tensors: tensors.update({new: tensors.pop(old)})


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "a layer is missing": (
        rename("blk.1.attn_v.weight", "blk.7.attn_v.weight"),
        "its 2 layers do not have one attn_v each",
    ),
    "a layer too many": (
        rename("blk.1.attn_q.bias", "blk.2.ffn_down.weight"),
        "layers do not have one ffn_down",
    ),
    "a long name": (rename("blk.1.attn_q.bias", "blk." + "1" * 60), "more than 63 bytes"),
    "experts": (
        lambda _, tensors: tensors.update({"x": np.zeros((2, 4, 256), np.float32)}),
        r"absurd shape \[256, 4, 2\]",
    ),
    "integers": (lambda _, tensors: tensors.update({"x": np.zeros(8, np.int32)}), "tensor 'x' in I32"),
    "a split file": (lambda writer, _: writer.add_uint16("split.count", 2), "part of a split file"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_sources_that_contradict_themselves_are_refused(
    tmp_path: Path, make_source: MakeSource, name: str
) -> None:
    change, message = CONTRADICTIONS[name]
    source = write_decoder(tmp_path / "source.gguf", make_source(), change)
    with pytest.raises(BundleError, match=message):
        quantize_gguf(source, tmp_path / "out.gguf", "Q4_K_M")
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_other_tools_files_are_read_too(tmp_path: Path, make_source: MakeSource) -> None:
    """Another order of tensors and keys, another alignment, and keys of a file that was once split."""

    def change(writer: gguf.GGUFWriter, tensors: dict[str, Any]) -> None:
        writer.add_custom_alignment(64)
        writer.add_uint16("split.count", 0)
        for name in sorted(tensors, reverse=True):
            tensors[name] = tensors.pop(name)

    source = write_decoder(tmp_path / "source.gguf", make_source(), change)
    quantize_gguf(source, tmp_path / "out.gguf", "Q4_K_M")
    expected = llama_quantize(make_source(), tmp_path / "expected.gguf", "Q4_K_M")
    assert read_tensors(tmp_path / "out.gguf") == read_tensors(expected)
    header = read_gguf_header(tmp_path / "out.gguf")
    assert (header.alignment, header.metadata.get("split.count")) == (32, None)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "falcon")
    writer.add_tensor("output.weight", np.zeros((2, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="'falcon'"):
        quantize_gguf(tmp_path / "source.gguf", tmp_path / "out.gguf", "Q4_K_M")


def set_bytes(content: bytearray, offset: int, raw: bytes) -> None:
    content[offset : offset + len(raw)] = raw


def tensor_info(content: bytearray, name: bytes) -> int:
    """Where what follows a tensor's name in the header begins: dimensions, type, offset."""
    return content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


HUGE = struct.pack("<Q", 2**62)
HOSTILE: dict[str, Callable[[bytearray], object]] = {
    "cut in its header": lambda content: content.__delitem__(slice(1000, None)),
    "cut in its last tensor": lambda content: content.__delitem__(slice(-100, None)),
    "an absurd number of tensors": lambda content: set_bytes(content, 8, HUGE),
    "an absurd number of keys": lambda content: set_bytes(content, 16, HUGE),
    "a key longer than the file": lambda content: set_bytes(content, 24, HUGE),
    "a name twice": lambda content: set_bytes(
        content, content.index(b"blk.1.attn_k.weight"), b"blk.0.attn_k.weight"
    ),
    "absurdly many rows": lambda content: set_bytes(
        content, tensor_info(content, b"blk.0.attn_k.weight") + 12, HUGE
    ),
    "absurdly long rows": lambda content: set_bytes(
        content, tensor_info(content, b"blk.0.attn_k.weight") + 4, HUGE
    ),
    "too many dimensions": lambda content: set_bytes(
        content, tensor_info(content, b"blk.0.attn_k.weight"), b"\xff"
    ),
    "tensors that overlap": lambda content: set_bytes(
        content, tensor_info(content, b"blk.0.attn_k.weight") + 24, bytes(8)
    ),
    "a tensor beyond the file": lambda content: set_bytes(
        content, tensor_info(content, b"blk.0.attn_k.weight") + 24, HUGE
    ),
    "more layers than tensors": lambda content: set_bytes(
        content, content.index(b"qwen2.block_count") + 17 + 4, b"\x7f"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_clear_error_before_anything_is_written(
    tmp_path: Path, make_source: MakeSource, name: str
) -> None:
    content = bytearray(make_source().read_bytes())
    HOSTILE[name](content)
    source = tmp_path / "source.gguf"
    source.write_bytes(content)
    with pytest.raises(BundleError, match=r"source\.gguf"):
        quantize_gguf(source, tmp_path / "out.gguf", "Q4_K_M")
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_damage_is_one_error_before_anything_is_written_or_harmless(
    tmp_path: Path, make_source: MakeSource, data: st.DataObject
) -> None:
    """Bytes changed in the header, and the file cut anywhere."""
    sound = make_source("F16", hidden_size=64, intermediate_size=64, n_heads=2, n_layers=1).read_bytes()
    vocabulary = sound.index(b"tokenizer.ggml.token_type")
    cut = data.draw(st.one_of(st.just(len(sound)), st.integers(0, len(sound))), label="length")
    content = bytearray(sound[:cut])
    positions = st.one_of(st.integers(0, 2000), st.integers(vocabulary, len(sound) // 2))
    changes = st.tuples(positions, st.sampled_from([b"\0", b"\x7f", b"\xff", b"\xff" * 8, b"\0" * 8]))
    for position, raw in data.draw(st.lists(changes, max_size=3), label="changes"):
        content[position : position + len(raw)] = raw
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    source.write_bytes(content[: len(sound)])
    try:
        quantize_gguf(source, out, "Q4_K_M")
    except AceStepError:
        assert not out.exists()
    else:
        assert decoder_info(read_gguf_header(out)).n_params == decoder_info(read_gguf_header(source)).n_params
        out.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
