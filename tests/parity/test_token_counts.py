"""Tokens of pictures and their crops next to transformers' processors, at published sizes."""

from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.image_spec import LongestEdgeTiles, Quarters
from acestep_gguf.quality.reference import read_processor
from acestep_gguf.vision.image import crops_of, normalized
from acestep_gguf.vision.quartered import Quartered
from acestep_gguf.vision.tiling import tiling_of
from tests.support.fidelity import drawing
from tests.support.published_tiles import CHECKPOINTS, image_spec, picture_sizes, token_counts
from tests.support.stages import PIXEL_TOLERANCE, batched

pytestmark = pytest.mark.parity

N_SIZES = 2000
TILED = ("idefics2", "idefics2-whole", "llava-next", "llava-onevision", "smolvlm-500m", "smolvlm-2.2b")
SIZES = ([(600, 800)], [(1500, 500)], [(500, 500)], [(1, 1)], [(4000, 30)], [(90, 61), (61, 90)])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tokens_of_pictures_of_any_size(name: str, tmp_path: Path) -> None:
    from tests.parity.reference import expected_counts

    folder, sizes = CHECKPOINTS[name].write(tmp_path / name), picture_sizes(N_SIZES)
    ours = token_counts(image_spec(folder), sizes)
    assert ours == expected_counts(read_processor(folder), sizes)
    assert ours.count(None) < N_SIZES // 10


@pytest.mark.parametrize("name", ["idefics2", "idefics2-whole"])
def test_crops_of_any_picture_are_as_large_as_those_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.parity.reference import idefics2_crops

    folder = CHECKPOINTS[name].write(tmp_path / name)
    tiling, image_processor = tiling_of(image_spec(folder)), read_processor(folder).image_processor
    assert isinstance(tiling, Quartered)
    for size in picture_sizes(N_SIZES):
        expected = idefics2_crops(image_processor, *size)
        if expected:
            assert [fitted[::-1] for _, fitted in tiling.fitted_crops(size)] == expected


@pytest.mark.parametrize(
    ("name", "sizes"),
    [(name, sizes) for name in TILED for sizes in SIZES if (name, sizes) != ("idefics2", [(1, 1)])],
)
def test_crops_are_those_of_transformers(name: str, sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    folder = CHECKPOINTS[name].write(tmp_path / name)
    pictures = [drawing(size, seed) for seed, size in enumerate(sizes)]
    expected = read_processor(folder).image_processor([pictures], return_tensors="np")["pixel_values"]
    spec = image_spec(folder)
    tiling = tiling_of(spec, n_pictures=len(pictures))
    if isinstance(spec.tiles, LongestEdgeTiles | Quarters):  # whose processors have all crops in one row
        expected = np.split(expected[0], np.cumsum([*map(tiling.n_crops, sizes)])[:-1])
    for picture, theirs in zip(pictures, expected, strict=True):
        ours = batched([normalized(crop, spec) for crop in crops_of(picture, tiling)])
        std = np.array(spec.std, np.float32).reshape(3, 1, 1)
        assert np.abs((ours - theirs[: len(ours)]) * std).max() <= PIXEL_TOLERANCE + 1e-6
        assert not theirs[len(ours) :].any()  # what fills up a batch
