import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from acestep_gguf.bundle.onnx_file import ELEMENT_BYTES, ExternalData, Initializer, Value, read_onnx
from acestep_gguf.errors import BundleError


def small_model() -> ModelProto:
    outside = TensorProto(
        name="weight", dims=[2, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "x.data"), ("offset", "64"), ("length", "24")):
        outside.external_data.add(key=key, value=value)
    inside = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("LeakyRelu", ["y"], ["z"], alpha=0.5),
        helper.make_node("Transpose", ["z"], ["out"], perm=[0, 1]),
    ]
    values = [helper.make_tensor_value_info(*of) for of in (("x", 1, ("B", 2)), ("out", 1, (None, 3)))]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [outside, inside]))


SMALL = small_model().SerializeToString()


def read(folder: Path, data: bytes) -> object:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return read_onnx(path)


def test_a_small_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(SMALL)
    model = read_onnx(tmp_path / "model.onnx")
    assert model.inputs == (Value("x", 1, ("B", 2)),)
    assert model.outputs == (Value("out", 1, (None, 3)),)
    assert model.initializers == (
        Initializer("weight", (2, 3), 24, ExternalData("x.data", 64, 24)),
        Initializer("shape", (2,), 16, None),
    )


def test_a_tower_reads_as_the_onnx_package_reads_it(tiny_bundle: Path) -> None:
    path = tiny_bundle / "vision-float32.onnx"
    ours, theirs = read_onnx(path), onnx.load(path, load_external_data=False).graph
    assert [(weight.name, weight.dims) for weight in ours.initializers] == [
        (weight.name, tuple(weight.dims)) for weight in theirs.initializer
    ]
    for weight, other in zip(ours.initializers, theirs.initializer, strict=True):
        entries = {entry.key: entry.value for entry in other.external_data}
        if weight.external is None:
            assert not entries
        else:
            assert entries == {
                "location": weight.external.location,
                "offset": str(weight.external.offset),
                "length": str(weight.external.length),
            }


def test_element_sizes_are_those_of_onnx() -> None:
    for data_type, n_bytes in ELEMENT_BYTES.items():
        assert helper.tensor_dtype_to_np_dtype(data_type).itemsize == n_bytes


def hide_in_a_constant(model: ModelProto) -> None:
    hidden = TensorProto()
    hidden.CopyFrom(model.graph.initializer[0])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=hidden))


def hide_in_a_subgraph(model: ModelProto) -> None:
    branch = helper.make_graph([], "b", [], [], [model.graph.initializer[0]])
    model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch))


def hide_in_a_sparse_tensor(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(model.graph.initializer[0])


def hide_in_a_function(model: ModelProto) -> None:
    model.functions.add().node.append(helper.make_node("Identity", ["x"], ["y"]))


def hide_in_training_info(model: ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(model.graph.initializer[0])


def add_a_second_location(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def add_an_unknown_key(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="basepath", value="/etc")


def set_entry(key: str, value: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value

    change.__name__ = f"{key}_{value!r}"
    return change


def set_field(name: str, value: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        setattr(model.graph.initializer[0], name, value)

    change.__name__ = f"{name}_{value}"
    return change


def absurd_dims(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, 0]


def forget_the_graph(model: ModelProto) -> None:
    model.ClearField("graph")


def float_data(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))


def name_twice(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[1])


@pytest.mark.parametrize(
    "change",
    [
        hide_in_a_constant,
        hide_in_a_subgraph,
        hide_in_a_sparse_tensor,
        hide_in_a_function,
        hide_in_training_info,
        add_a_second_location,
        add_an_unknown_key,
        set_entry("length", "23"),
        set_entry("length", "-24"),
        set_entry("length", "٢٤"),
        set_entry("offset", "9" * 30),
        set_entry("offset", ""),
        set_field("data_type", TensorProto.STRING),
        set_field("data_type", TensorProto.FLOAT16),
        set_field("data_location", TensorProto.DEFAULT),
        set_field("raw_data", b"\0" * 24),
        absurd_dims,
        forget_the_graph,
        float_data,
        name_twice,
    ],
)
def test_what_conversion_does_not_write_is_refused(
    tmp_path: Path, change: Callable[[ModelProto], None]
) -> None:
    model = small_model()
    change(model)
    with pytest.raises(BundleError, match="damaged"):
        read(tmp_path, model.SerializeToString())


def test_two_graphs_are_refused_though_protobuf_would_merge_them(tmp_path: Path) -> None:
    other = ModelProto()
    other.graph.initializer.append(small_model().graph.initializer[0])
    with pytest.raises(BundleError, match="graph stands twice"):
        read(tmp_path, SMALL + other.SerializeToString())


def test_several_numbers_in_one_field(tmp_path: Path) -> None:
    """Protobuf's "packed" form; dims 2 and 3 are written one by one by onnx."""
    unpacked, packed = b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03"
    assert SMALL.count(unpacked) == 1
    (tmp_path / "model.onnx").write_bytes(SMALL.replace(unpacked, packed))
    assert read_onnx(tmp_path / "model.onnx").initializers[0].dims == (2, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x3a",
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph of 4 GiB
        b"\x80" * 11,
        b"\xff" * 9 + b"\x7f",
        b"\x00\x00",
        b"\x3b\x3c",  # a group
        b"\x3d\0\0\0\0",  # a graph as a number
        b"\x3a\x02\x0b\x0c",
    ],
)
def test_malformed_bytes(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError, match="damaged"):
        read(tmp_path, data)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BundleError, match="cannot be read"):
            read_onnx(path)


def test_absurdly_many_fields_end_soon(tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(BundleError, match="absurdly many"):
        read(tmp_path, b"\x08\x01" * 2**20)
    assert time.process_time() - started < 2


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(damaged)))
        stop = start + data.draw(st.integers(0, 4))
        damaged[start:stop] = data.draw(st.binary(max_size=6))
    with suppress(BundleError):
        read(tmp_path, bytes(damaged))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64))
def test_any_bytes_raise_nothing_else(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError):
        read(tmp_path, data)
