from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from acestep_gguf.bundle.prefill_info import check_prefill_file, lay_out
from acestep_gguf.bundle.schema import Bundle, FileRecord, PrefillFile
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError
from tests.support.tiny_checkpoints import TinyCheckpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefill")
    checkpoint = TinyCheckpoint(has_tower=False).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ("F32",), prefill=True)
    return folder / "bundle"


def record_of(folder: Path) -> PrefillFile:
    record = Bundle.read(folder).prefill
    assert record is not None
    return record


def test_the_layout_of_a_sound_file(folder: Path) -> None:
    layout = check_prefill_file(folder, record_of(folder))
    assert (layout.n_layers, layout.n_embd, layout.n_head_kv, layout.n_embd_head) == (2, 256, 2, 64)
    widths = [weight.shape[1] for weight in layout.weights if len(weight.shape) == 2]
    assert max(widths) == 512
    assert layout.stride * 2 == layout.data.stat().st_size
    names = [weight.name for weight in layout.weights]
    assert names[:4] == ["attn_norm.weight", "attn_qkv.weight", "attn_qkv.scale", "attn_qkv.bias"]
    assert all(weight.offset % 64 == 0 for weight in layout.weights)


def test_weights_do_not_overlap() -> None:
    placed, stride = lay_out([("a", 1, (3,)), ("b", 3, (65, 1)), ("c", 1, (16,))])
    assert [(weight.offset, weight.n_bytes) for weight in placed] == [(0, 12), (64, 65), (192, 64)]
    assert stride == 256


def without_output(graph: onnx.GraphProto) -> None:
    del graph.output[2]


def without_state(graph: onnx.GraphProto) -> None:
    del graph.input[1]


def without_weight(graph: onnx.GraphProto) -> None:
    del graph.input[-1]


def with_open_weight(graph: onnx.GraphProto) -> None:
    graph.input[-1].type.tensor_type.shape.dim[0].dim_param = "n"


def with_weight_of_other_type(graph: onnx.GraphProto) -> None:
    graph.input[-1].type.tensor_type.elem_type = TensorProto.DOUBLE


def with_negative_width(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0


def with_external_weight(graph: onnx.GraphProto) -> None:
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    graph.initializer.append(tensor)


def with_inner_graph(graph: onnx.GraphProto) -> None:
    graph.node[0].attribute.append(helper.make_attribute("body", onnx.GraphProto(name="inner")))


DAMAGES: tuple[Callable[[onnx.GraphProto], None], ...] = (
    without_output, without_state, without_weight, with_open_weight, with_weight_of_other_type,
    with_negative_width, with_external_weight, with_inner_graph,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_graph_that_is_not_ours_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[onnx.GraphProto], None]
) -> None:
    record = record_of(folder)
    model = onnx.load(folder / record.file)
    damage(model.graph)
    data = model.SerializeToString()
    (tmp_path / record.file).write_bytes(data)
    (tmp_path / record.data.file).write_bytes((folder / record.data.file).read_bytes())
    with pytest.raises(BundleError, match=r"damaged|convert"):
        check_prefill_file(tmp_path, replace(record, bytes=len(data)))


def test_a_record_that_lies_about_its_layers(folder: Path) -> None:
    with pytest.raises(BundleError, match="3 layers of its weights"):
        check_prefill_file(folder, replace(record_of(folder), n_layers=3))
    with pytest.raises(ValueError, match="claims 0 layers"):
        PrefillFile(file="a", bytes=1, sha256="", data=FileRecord(file="b", bytes=1, sha256=""), n_layers=0)
