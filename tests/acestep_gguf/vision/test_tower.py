import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import BundleError, DecodeError
from acestep_gguf.vision.tower import VisionTower


@pytest.fixture(scope="session", params=["float32", "int8"])
def tower(tiny_bundle: Path, request: pytest.FixtureRequest) -> VisionTower:
    return VisionTower(tiny_bundle, Bundle.read(tiny_bundle), request.param, n_threads=1)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, 28, 28)).astype(np.float32)


def test_embeds_have_the_shape_that_the_bundle_says(tower: VisionTower) -> None:
    encoded = tower.encode(pixels())
    assert encoded.embeds.shape == (4, 256)
    assert encoded.embeds.dtype == np.float32
    assert encoded.patch_attention.shape == (4,)
    assert encoded.patch_attention.dtype == np.float32


def test_embeds_do_not_depend_on_what_else_is_encoded(tower: VisionTower) -> None:
    """int8 has one step for all of its input: a picture of large values would spoil others beside it."""
    alone = tower.encode(pixels())
    loud = tower.encode(100 * pixels(1))
    again = tower.encode(pixels())
    assert np.array_equal(alone.embeds, again.embeds)
    assert np.array_equal(alone.patch_attention, again.patch_attention)
    assert not np.array_equal(alone.embeds, loud.embeds)
    with pytest.raises(DecodeError, match="pixel_values"):
        tower.encode(np.concatenate([pixels(), 100 * pixels(1)]))


def test_the_bundles_default_is_int8(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    default, int8, exact = (
        VisionTower(tiny_bundle, bundle, precision, n_threads=1).encode(pixels()).embeds
        for precision in (None, "int8", "float32")
    )
    assert np.array_equal(default, int8)
    assert not np.array_equal(default, exact)


def test_a_tower_that_tells_no_attention(bundle_copy: Path) -> None:
    """As those of schema version 1."""
    model = onnx.load(bundle_copy / "vision-float32.onnx", load_external_data=False)
    del model.graph.output[1]
    encoded = load(bundle_copy, rewritten(bundle_copy, model.SerializeToString())).encode(pixels())
    assert encoded.embeds.shape == (4, 256)
    assert encoded.patch_attention.shape == (0,)
    with pytest.raises(BundleError, match="no attention of patches"):
        encoded.kept(2)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 28, 28), np.float32),
        np.zeros((1, 3, 28, 29), np.float32),
        np.zeros((3, 28, 28), np.float32),
        np.zeros((1, 3, 28, 28), np.float64),
    ],
)
def test_other_shapes_are_refused(tower: VisionTower, wrong: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="pixel_values"):
        tower.encode(wrong)


def test_embeds_that_are_not_finite_are_refused(tower: VisionTower) -> None:
    with pytest.raises(DecodeError, match="image embeds"):
        tower.encode(np.full((1, 3, 28, 28), np.nan, np.float32))


def load(folder: Path, bundle: Bundle) -> VisionTower:
    return VisionTower(folder, bundle, "float32", n_threads=1)


@pytest.mark.parametrize("name", ["vision-float32.onnx", "vision-float32.onnx.data"])
def test_missing_and_half_written_files(bundle_copy: Path, name: str) -> None:
    bundle = Bundle.read(bundle_copy)
    path = bundle_copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="half-copied"):
        load(bundle_copy, bundle)
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        load(bundle_copy, bundle)


def rewritten(folder: Path, model: bytes) -> Bundle:
    """The bundle in ``folder``, with ``model`` as its graph and a record that fits."""
    (folder / "vision-float32.onnx").write_bytes(model)
    return with_record(folder, bytes=len(model), sha256=hashlib.sha256(model).hexdigest())


def with_record(folder: Path, **changes: Any) -> Bundle:
    bundle = Bundle.read(folder)
    vision, _ = bundle.tower()
    record = replace(vision.files["float32"], **changes)
    return replace(bundle, vision=replace(vision, files=vision.files | {"float32": record}))


def test_a_damaged_graph(bundle_copy: Path) -> None:
    entry = (bundle_copy / "vision-float32.onnx").read_bytes()
    for damaged in (entry[: len(entry) // 2], entry[:200] + b"\xff" * 50 + entry[250:]):
        with pytest.raises(BundleError):
            load(bundle_copy, rewritten(bundle_copy, damaged))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "other.data"])
def test_a_graph_that_reads_other_files_is_refused(bundle_copy: Path, location: str) -> None:
    model = onnx.load(bundle_copy / "vision-float32.onnx", load_external_data=False)
    for entry in model.graph.initializer[-1].external_data:
        if entry.key == "location":
            entry.value = location
    with pytest.raises(BundleError, match="another file"):
        load(bundle_copy, rewritten(bundle_copy, model.SerializeToString()))


def test_a_huge_graph_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "vision-float32.onnx"
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match="too large"):
        load(bundle_copy, with_record(bundle_copy, bytes=1 << 30))


def test_a_graph_for_other_pictures_is_refused(bundle_copy: Path) -> None:
    bundle = Bundle.read(bundle_copy)
    _, spec = bundle.tower()
    for image in (replace(spec, n_image_tokens=5), replace(spec, n_embd=128)):
        with pytest.raises(BundleError, match="does not take and give"):
            load(bundle_copy, replace(bundle, image=image))
