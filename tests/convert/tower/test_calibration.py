"""A tower in int8 next to itself in float32, on random weights and with planted outliers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.tower import calibration
from acestep_gguf.convert.tower.calibration import Calibration, calibrate, find_pictures
from acestep_gguf.convert.tower.int8 import Int8Input, plan_input
from acestep_gguf.errors import ImageError
from tests.support.tiny_checkpoints import TinyCheckpoint, tiny_onevision

# As wide as outliers need to be outliers, and as deep as a test may be.
MIDDLE = {
    "vision_hidden_size": 320,
    "vision_intermediate_size": 1280,
    "vision_n_layers": 9,
    "vision_n_heads": 4,
    "image_size": 112,
    "dtype": "F32",
}


def calibrated(folder: Path, **options: Any) -> Calibration:
    return calibrated_model(TinyCheckpoint(**options).write(folder / "checkpoint"))


def calibrated_model(checkpoint: Path) -> Calibration:
    with open_model(checkpoint, None) as model:
        assert model.image is not None
        assert isinstance(model.config, VisionLanguageConfig)
        pictures = find_pictures(None, model.image)
        return calibrate(model.config, model.image, model.tensors.tower, pictures, n_threads=2)


@contextmanager
def without_remedies() -> Iterator[None]:
    """Plain dynamic quantization."""

    def nothing(channels: Any, _weights: Any, *, is_foldable: bool) -> tuple[Int8Input, float]:
        return Int8Input(np.ones(len(channels.low), np.float32)), 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "plan_input", nothing)
        yield


@pytest.mark.slow
def test_int8_is_close_to_float32(tmp_path: Path) -> None:
    found = calibrated(tmp_path, **MIDDLE)
    assert found.cosine_min >= 0.999
    assert not any(plan.outliers for plan in found.int8.values())
    assert len(found.int8) == 8 * 4  # four inputs of linear layers a block, and the last block is not needed


@pytest.mark.slow
def test_planted_outliers_do_not_ruin_int8(tmp_path: Path) -> None:
    found = calibrated(tmp_path / "1", n_outliers=8, **MIDDLE)
    assert found.cosine_min >= 0.996
    assert found.cosine_mean >= 0.998
    with without_remedies():
        plain = calibrated(tmp_path / "2", n_outliers=8, **MIDDLE)
    assert plain.cosine_min < 0.98


def test_the_same_pictures_give_the_same(tmp_path: Path) -> None:
    first, second = (calibrated(tmp_path / str(i), n_outliers=4) for i in range(2))
    assert first.cosine_min == second.cosine_min
    assert first.int8.keys() == second.int8.keys()
    for name, plan in first.int8.items():
        assert np.array_equal(plan.divisors, second.int8[name].divisors)
        assert plan.outliers == second.int8[name].outliers


@pytest.mark.parametrize("tiny", [TinyCheckpoint(architecture="llava_next", image_size=56), tiny_onevision()])
def test_tiles_calibrate_too(tmp_path: Path, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    run = calibration._Tower.run

    def spy(tower: Any, pixels: Any, *arguments: Any) -> Any:
        seen.append([x.shape for x in pixels])
        return run(tower, pixels, *arguments)

    monkeypatch.setattr(calibration._Tower, "run", spy)
    checkpoint = tiny.write(tmp_path / "checkpoint")
    found = calibrated_model(checkpoint)
    side, n_pictures = tiny.image_size, len(list(calibration.PICTURES.glob("*.jpg")))
    assert found.cosine_min >= 0.999
    assert set(seen[0]) == {(1, 3, side, side)}
    assert 1 + 2 * n_pictures < len(seen[0]) <= 1 + calibration.MAX_CROPS * n_pictures


def test_the_most_sensitive_layers_stay_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def pessimistic(*arguments: Any, is_foldable: bool) -> tuple[Int8Input, float]:
        plan, _ = plan_input(*arguments, is_foldable=is_foldable)
        return plan, 1.0

    monkeypatch.setattr(calibration, "plan_input", pessimistic)
    monkeypatch.setattr(calibration, "MAX_FLOAT_SHARE", 0.5)
    half = calibrated(tmp_path / "half").int8
    monkeypatch.setattr(calibration, "MAX_FLOAT_SHARE", 1.0)
    none = calibrated(tmp_path / "none")
    assert 0 < len(half) < 8
    assert not none.int8
    assert none.cosine_min > 0.999999


def no_folder(folder: Path) -> Path:
    return folder / "none"


def empty(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no picture")
    return folder


def damaged(folder: Path) -> Path:
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    (folder / "b.JPG").write_bytes(b"\xff\xd8 and no more")
    return folder


def too_many(folder: Path) -> Path:
    for i in range(65):
        (folder / f"{i}.png").touch()
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_folder, "cannot be read"),
        (empty, "has 0 pictures to calibrate with"),
        (damaged, r"b\.JPG"),
        (too_many, "has 65 pictures"),
    ],
)
def test_folders_that_do_not_do(
    tmp_path: Path, tiny_checkpoint: Path, make: Callable[[Path], Path], message: str
) -> None:
    with open_model(tiny_checkpoint, None) as model:
        image = model.image
    assert image is not None
    with pytest.raises(ImageError, match=message):
        find_pictures(make(tmp_path), image)
