"""A bundle of the 32B shape, made of headers and holes."""

from pathlib import Path

import pytest

from acestep_gguf.plan.bundle_model import BundleModel
from scripts.synthetic.bundle import write_bundle, write_checkpoint
from scripts.synthetic.checkpoint import SHAPES, VISION_SHAPES, Shape, VisionShape


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("32b")
    (folder / "checkpoint").mkdir()
    write_checkpoint(folder / "checkpoint", SHAPES["32b"], VISION_SHAPES["tiny"])
    write_bundle(folder / "checkpoint", folder / "bundle", ["Q4_K_M", "Q8_0"], name="Large", sparse=True)
    return folder / "bundle"


@pytest.fixture(scope="session")
def large(large_folder: Path) -> BundleModel:
    return BundleModel(large_folder)


@pytest.fixture(scope="session")
def wide_tower(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    """A tower of few layers, but with the tokens of ViT-H/14 at 448 px, in both precisions."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "checkpoint").mkdir()
    write_checkpoint(folder / "checkpoint", SHAPES["tiny"], VisionShape(512, 6, 8, 2048, 14, 448))
    write_bundle(
        folder / "checkpoint", folder / "bundle", ["Q4_K_M"], ("float32", "int8"), name="Wide", sparse=True
    )
    return BundleModel(folder / "bundle")


@pytest.fixture(scope="session")
def hollow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that runs, though its decoder's weights are a hole, and that takes some hundred MB."""
    folder = tmp_path_factory.mktemp("hollow")
    (folder / "checkpoint").mkdir()
    shape = Shape(512, 6, 8, 4, 1536, 151936, tied=True)
    write_checkpoint(folder / "checkpoint", shape, VISION_SHAPES["tiny"])
    write_bundle(folder / "checkpoint", folder / "bundle", ["Q4_K_M"], name="Hollow", sparse=True)
    return folder / "bundle"
