from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto

from acestep_gguf.bundle.image_spec import Size
from acestep_gguf.bundle.onnx_file import read_onnx
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.vision_info import check_graph, check_vision_file
from acestep_gguf.errors import BundleError


def check(folder: Path, model: ModelProto | None = None) -> None:
    vision, image = Bundle.read(folder).tower()
    path = folder / "vision-float32.onnx"
    if model is not None:
        path.write_bytes(model.SerializeToString())
    check_graph(read_onnx(path), vision.files["float32"], image)


def graph_of(folder: Path) -> ModelProto:
    return onnx.load(folder / "vision-float32.onnx", load_external_data=False)


def entry(model: ModelProto, which: int, key: str) -> onnx.StringStringEntryProto:
    (found,) = [entry for entry in model.graph.initializer[which].external_data if entry.key == key]
    return found


def test_what_was_converted_is_sound(tiny_bundle: Path) -> None:
    vision, image = Bundle.read(tiny_bundle).tower()
    path = check_vision_file(tiny_bundle, vision.files["float32"], image)
    assert path == tiny_bundle / "vision-float32.onnx"


@pytest.mark.parametrize("location", ["../x", "/etc/passwd", "other.data", "./vision-float32.onnx.data", ""])
@pytest.mark.parametrize("which", [-1, -5])
def test_weights_in_another_file(bundle_copy: Path, location: str, which: int) -> None:
    model = graph_of(bundle_copy)
    entry(model, which, "location").value = location
    with pytest.raises(BundleError, match="another file"):
        check(bundle_copy, model)


def test_a_graph_without_weights(bundle_copy: Path) -> None:
    model = graph_of(bundle_copy)
    del model.graph.initializer[:]
    with pytest.raises(BundleError, match="another file"):
        check(bundle_copy, model)


def overlap(model: ModelProto) -> None:
    entry(model, -1, "offset").value = entry(model, -2, "offset").value


def leave_the_file(model: ModelProto) -> None:
    entry(model, -1, "offset").value = str(int(entry(model, -1, "offset").value) + 1)


@pytest.mark.parametrize("change", [overlap, leave_the_file])
def test_weights_lie_side_by_side_in_the_data_file(
    bundle_copy: Path, change: Callable[[ModelProto], None]
) -> None:
    model = graph_of(bundle_copy)
    change(model)
    with pytest.raises(BundleError, match="overlap or are not within"):
        check(bundle_copy, model)


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def half_precision(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def two_inputs(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def no_shape(model: ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[:]


@pytest.mark.parametrize("change", [fixed_batch, half_precision, two_inputs, no_shape])
def test_another_signature(bundle_copy: Path, change: Callable[[ModelProto], None]) -> None:
    model = graph_of(bundle_copy)
    change(model)
    with pytest.raises(BundleError, match="does not take and give"):
        check(bundle_copy, model)


def test_a_tower_for_other_pictures(tiny_bundle: Path) -> None:
    vision, image = Bundle.read(tiny_bundle).tower()
    others = (
        replace(image, size=Size(height=28, width=42)),
        replace(image, n_image_tokens=5),
        replace(image, n_embd=8),
    )
    for other in others:
        with pytest.raises(BundleError, match="does not take and give"):
            check_vision_file(tiny_bundle, vision.files["float32"], other)
