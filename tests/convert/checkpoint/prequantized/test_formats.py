"""Which format a checkpoint has, and whole checkpoints of every one of them."""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cli.info import facts_and_settings, table
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.prequantized.formats import read_format, unpack
from acestep_gguf.convert.compare import compare_with_checkpoint
from acestep_gguf.convert.model import open_model
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from acestep_gguf.quantize.conversion_events import Event, Planned
from tests.support.packed_tensors import METHODS, Stored, by_dtype, open_stored, write_packed, write_stored
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint, tiny_onevision
from tests.support.tiny_internvl import TinyInternVL

DECODERS: tuple[Decoder, ...] = ("qwen2", "qwen3", "mistral")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tiny"),
    [
        *(
            (method, TinyCheckpoint(decoder=decoder, dtype="F32"))
            for method in METHODS
            for decoder in DECODERS
        ),
        ("awq", TinyCheckpoint(architecture="llava_next", decoder="llama", dtype="F32")),
        ("bitsandbytes-nf4", tiny_onevision(layout="v5", dtype="F32")),
        ("awq", TinyInternVL(dtype="F32")),
        ("fp8", TinyInternVL(decoder="qwen3", dtype="F32")),
        ("gptq", TinyInternVL(is_original=True, dtype="F32")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.architecture}-{value.decoder}",
)
def test_a_quantized_checkpoint_converts_like_what_it_stands_for(
    tmp_path: Path, method: str, tiny: TinyCheckpoint
) -> None:
    packed = write_packed(tiny, tmp_path / "packed", METHODS[method])
    dense = tiny.write(tmp_path / "dense")
    with open_model(packed, None) as model:
        n_packed = sum(METHODS[method].packs(name) for name in tiny.tensors())
        read = {name: model.weights.tensors[name].read() for name in tiny.tensors()}
    write_stored(dense / "model.safetensors", {name: ("F32", weight) for name, weight in read.items()})
    differing = [name for name, weight in tiny.tensors().items() if not np.array_equal(read[name], weight)]
    assert len(differing) == n_packed > 0

    events: list[Event] = []
    bundle = convert_checkpoint(packed, tmp_path / "a", ["Q8_0"], name="T", on_event=events.append)
    expected = convert_checkpoint(dense, tmp_path / "b", ["Q8_0"], name="T")
    assert [record.sha256 for record in bundle.records()] == [record.sha256 for record in expected.records()]
    assert not any(decoder.problems for decoder in compare_with_checkpoint(tmp_path / "a", packed))
    assert bundle.source.quantization == METHODS[method].label
    assert expected.source.quantization is None
    (plan,) = (event for event in events if isinstance(event, Planned))
    assert plan.source_quantization == METHODS[method].label
    assert Bundle.read(tmp_path / "a") == bundle
    assert f"quantized twice, first as {METHODS[method].label}" in table(facts_and_settings(tmp_path / "a"))
    assert "quantized twice" not in table(facts_and_settings(tmp_path / "b"))


def test_small_chunks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_packed(TinyCheckpoint(), tmp_path / "packed", METHODS["gptq"])
    whole = convert_checkpoint(packed, tmp_path / "a", ["F16"], name="T", threads=3)
    monkeypatch.setattr("acestep_gguf.quantize.one_pass.MAX_CHUNK_WEIGHTS", 1000)
    monkeypatch.setattr("acestep_gguf.convert.checkpoint.prequantized.grouped_weight.MAX_HELD_BYTES", 1)
    chunked = convert_checkpoint(packed, tmp_path / "b", ["F16"], name="T", threads=3)
    assert chunked.decoder().sha256 == whole.decoder().sha256


def test_zero_biases_of_layers_that_have_none_are_left_out(tmp_path: Path) -> None:
    packed = write_packed(TinyCheckpoint(), tmp_path / "packed", METHODS["gptq"])
    bundle = convert_checkpoint(packed, tmp_path / "bundle", ["Q8_0"])
    names = {tensor.name for tensor in GGUFReader(tmp_path / "bundle" / bundle.decoder().file).tensors}
    assert "blk.0.attn_q.bias" in names
    assert not any(name.endswith(("attn_output.bias", "ffn_down.bias")) for name in names)


def test_a_bias_that_is_not_zero_is_not_left_out(tmp_path: Path) -> None:
    method = METHODS["gptq"]
    packed = write_packed(TinyCheckpoint(), tmp_path / "packed", method)
    tensors: dict[str, Any] = {}
    for name, weight in TinyCheckpoint().tensors().items():
        tensors |= method.pack(name, weight) if method.packs(name) else {name: ("BF16", weight)}
    name = "language_model.model.layers.1.mlp.down_proj.bias"
    tensors[name][1][3] = 0.5
    write_stored(packed / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"down_proj\.bias' is unknown"):
        convert_checkpoint(packed, tmp_path / "bundle", ["Q8_0"])


def config_of(tmp_path: Path, quantization: object, part: str | None = None) -> Path:
    folder = TinyCheckpoint().write(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config)["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "method", ["compressed-tensors", "hqq", "mxfp4", "fbgemm_fp8", "AWQ", "", None, ["awq"], 3]
)
@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_an_unknown_method_is_named(tmp_path: Path, method: object, part: str | None) -> None:
    folder = config_of(tmp_path, {"quant_method": method}, part)
    with pytest.raises(UnsupportedModelError) as error:
        convert_checkpoint(folder, tmp_path / "bundle", ["Q8_0"])
    assert f"quantized by {method!r}, which is not read, only awq, gptq, bitsandbytes, fp8" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("quantization", [[], "awq", 4])
def test_settings_that_are_no_object_are_an_error(tmp_path: Path, quantization: object) -> None:
    with pytest.raises(CheckpointError, match="quantization_config is not an object"):
        convert_checkpoint(config_of(tmp_path, quantization), tmp_path / "bundle", ["Q8_0"])


def test_parts_that_differ_are_an_error() -> None:
    config = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert read_format({**config, "text_config": config}, Path()) is not None
    other = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(CheckpointError, match="or there are two"):
        read_format({**config, "text_config": other}, Path())


def test_a_config_may_announce_what_the_weights_are_not(tmp_path: Path) -> None:
    """bitsandbytes' config stays when the weights were saved dequantized."""
    folder = config_of(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    bundle = convert_checkpoint(folder, tmp_path / "bundle", ["Q8_0"])
    assert bundle.source.quantization is None


def test_packed_tensors_without_a_config_are_unknown(tmp_path: Path) -> None:
    packed = write_packed(TinyCheckpoint(), tmp_path / "packed", METHODS["awq"])
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"qweight' is unknown"):
        convert_checkpoint(packed, tmp_path / "bundle", ["Q8_0"])


def test_a_weight_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    tensors = METHODS["awq"].pack("q_proj.weight", np.ones((8, 64), np.float32))
    tensors |= by_dtype({"q_proj.weight": np.ones((8, 64), np.float32)})
    stored = open_stored(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is stored packed and a second time"):
        unpack(stored, read_format({"quantization_config": METHODS["awq"].config}, Path()))


def test_packed_shapes_that_config_json_contradicts_are_an_error(tmp_path: Path) -> None:
    packed = write_packed(TinyCheckpoint(), tmp_path / "packed", METHODS["awq"])
    config = json.loads((packed / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 1024
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"proj\.weight has shape .* config\.json asks for"):
        convert_checkpoint(packed, tmp_path / "bundle", ["Q8_0"])


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
)
DTYPES = {"I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "U8": "u1", "I8": "i1", "F8_E4M3": "u1"}
NAME = "language_model.layers.0.q_proj.weight"


@given(method=st.sampled_from(list(METHODS)), data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_read_or_refused(tmp_path: Path, method: str, data: st.DataObject) -> None:
    config = dict(METHODS[method].config)
    if data.draw(st.booleans()):
        config[data.draw(st.sampled_from(list(config)))] = data.draw(VALUES)
    tensors = METHODS[method].pack(NAME, np.ones((16, 128), np.float32))
    for name in data.draw(st.lists(st.sampled_from(list(tensors)), max_size=2, unique=True)):
        damaged = data.draw(st.none() | damaged_tensors(*tensors[name]))
        tensors = {other: tensor for other, tensor in tensors.items() if other != name}
        tensors |= {} if damaged is None else {name: damaged}
    stored = open_stored(tmp_path / "a.safetensors", tensors)
    try:
        weights = unpack(stored, read_format({"quantization_config": config}, tmp_path)).tensors
        for weight in weights.values():
            if len(weight.shape) == 2 and 0 not in weight.shape:
                weight.check()
                assert weight.read().shape == weight.shape
    except (CheckpointError, UnsupportedModelError):
        return


@st.composite
def damaged_tensors(draw: st.DrawFn, dtype: str, array: NDArray[Any]) -> Stored:
    """Other bytes, or another dtype or shape."""
    dtype = draw(st.just(dtype) | st.sampled_from(list(DTYPES)))
    dims = st.sampled_from([0, 1, 2, 8, 16])
    shape = draw(st.just(array.shape) | st.lists(dims, max_size=3))
    n_bytes = prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    content = np.resize(np.frombuffer(draw(st.binary(min_size=1, max_size=16)), np.uint8), n_bytes)
    return dtype, np.frombuffer(content.tobytes(), DTYPES[dtype]).reshape(shape)
