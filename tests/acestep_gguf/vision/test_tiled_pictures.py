"""Tiled pictures on their way through encoder, cache and files; test_tiling.py has the arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import ImageError
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.embeds_file import EmbedsFile
from acestep_gguf.vision.encode_pictures import encode_pictures
from acestep_gguf.vision.encoder import ImageEncoder
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.tower import VisionTower
from tests.support.tiled_bundles import tiled_bundle
from tests.support.tiny_smolvlm import TinySmolVLM

N_TILE = 4  # tokens
N_CROPS = 7  # of a picture of 3:2


@pytest.fixture(scope="module")
def tiled(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiled_bundle(tiny_bundle, tmp_path_factory.mktemp("tiled") / "bundle")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (56, 84, 3), np.uint8)).save(path)
    return path


def make(bundle: Path, **options: Any) -> ImageEncoder:
    return ImageEncoder(bundle, Bundle.read(bundle), **{"n_threads": 1, **options})


def test_each_crop_is_encoded_by_itself(tiled: Path, wide: Path) -> None:
    encoder = make(tiled)
    picture = encoder.prepare(wide)
    assert picture.input.n_tokens == N_CROPS * N_TILE
    embeds = encoder.encode(picture)
    bundle = Bundle.read(tiled)
    tower = VisionTower(tiled, bundle, n_threads=1)
    crops = pixel_values(wide, bundle.tower()[1])
    assert len(crops) == N_CROPS
    rows = [tower.encode(crop) for crop in crops]
    assert np.array_equal(embeds.embeds, np.concatenate([row.embeds for row in rows]))
    assert np.array_equal(embeds.patch_attention, np.concatenate([row.patch_attention for row in rows]))


def test_fewer_tiles_are_another_picture(tiled: Path, wide: Path) -> None:
    encoders = [make(tiled, max_tiles=max_tiles) for max_tiles in (None, 2, 1)]
    pictures = [encoder.prepare(wide) for encoder in encoders]
    assert [picture.input.n_tokens for picture in pictures] == [7 * N_TILE, 3 * N_TILE, N_TILE]
    assert (
        len({picture.input.key for picture in pictures}) == len({picture.sha256 for picture in pictures}) == 3
    )
    with pytest.raises(ImageError, match="other settings"):
        encoders[0].prepare(pictures[1])


def test_the_cache_knows_tiled_pictures(tiled: Path, wide: Path, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    encoder = make(tiled, cache=cache)
    expected = encoder.encode(encoder.prepare(wide))
    cache.close()
    other = make(tiled, cache=DiskCache(tmp_path))
    found = other.recall(other.prepare(wide))
    assert found is not None
    assert np.array_equal(found.embeds, expected.embeds)
    assert (found.blocks, len(found.patch_attention)) == (expected.blocks, N_CROPS * N_TILE)
    fewer = make(tiled, cache=DiskCache(tmp_path), max_tiles=1)
    assert fewer.recall(fewer.prepare(wide)) is None


def test_each_tile_keeps_its_share_of_the_tokens(tiled: Path, wide: Path) -> None:
    encoder = make(tiled, image_tokens=10)
    picture = encoder.prepare(wide)
    rows = encoder.rows(picture)
    assert len(rows) == picture.input.n_tokens == 10
    whole = encoder.encode(picture).embeds
    kept = [int(np.flatnonzero((whole == row).all(axis=1))[0]) for row in rows]
    assert kept == sorted(set(kept))
    assert {place // N_TILE for place in kept} == set(range(N_CROPS))


def test_files_of_embeds_say_how_the_picture_was_cut(tiled: Path, wide: Path, tmp_path: Path) -> None:
    for name, max_tiles, n_tokens in (("all", None, N_CROPS * N_TILE), ("few", 2, 3 * N_TILE)):
        (done,) = encode_pictures(tiled, [wide], tmp_path / name, n_threads=1, max_tiles=max_tiles)
        assert done.n_image_tokens == n_tokens
        encoder = make(tiled)
        picture = encoder.prepare(EmbedsFile(done.path))
        assert picture.input.n_tokens == n_tokens
        expected = make(tiled, max_tiles=max_tiles)
        assert np.array_equal(encoder.rows(picture), expected.rows(expected.prepare(wide)))
        (again,) = encode_pictures(tiled, [wide], tmp_path / name, n_threads=1, max_tiles=max_tiles)
        assert again.seconds is None
    damaged = done.path.read_bytes().replace(b'"height":"56"', b'"height":"84"')
    done.path.write_bytes(damaged)
    with pytest.raises(ImageError, match="damaged"):
        make(tiled).prepare(EmbedsFile(done.path))


def test_answers_are_the_same_with_tiles_from_anywhere(tiled: Path, wide: Path, tmp_path: Path) -> None:
    (done,) = encode_pictures(tiled, [wide], tmp_path, n_threads=1)
    with AceStep(tiled, quant="F32", n_ctx=256, n_threads=1, cache=False) as model:
        answer = model.generate("x", [wide], max_tokens=8)
        assert answer.usage.image_tokens == N_CROPS * N_TILE
        assert model.generate("x", [EmbedsFile(done.path)], max_tokens=8).tokens == answer.tokens
        assert model.generate("x", [model.prepare_image(wide)], max_tokens=8).tokens == answer.tokens
        seen = model.as_seen(model.prepare_image(wide))
        assert seen.size == (3 * 28 + 8, 3 * 28 + 8)
    with AceStep(tiled, quant="F32", n_threads=1, cache=False, max_tiles=1) as model:
        assert model.generate("x", [wide], max_tokens=1).usage.image_tokens == N_TILE


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a family with tokens between its tiles."""
    folder = tmp_path_factory.mktemp("marked")
    checkpoint = TinySmolVLM(decoder="smollm").write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ["F32"], vision=["float32", "int8"])
    return folder / "bundle"


def test_tokens_between_tiles_are_part_of_a_picture(marked: Path, wide: Path, tmp_path: Path) -> None:
    n_marks = 3 * (4 * 2 + 1) + 3  # of three rows of four tiles, and the whole
    n_rows = 13 * N_TILE
    for image_tokens, n_kept in ((None, n_rows), (13, 13), (5, 5)):
        encoder = make(marked, image_tokens=image_tokens)
        picture = encoder.prepare(wide)
        assert picture.input.n_tokens == n_marks + n_kept
        assert len(encoder.rows(picture)) == n_kept
    for name, max_tiles, n_tokens in (("all", None, n_rows + n_marks), ("few", 2, N_TILE + 3)):
        (done,) = encode_pictures(marked, [wide], tmp_path / name, n_threads=1, max_tiles=max_tiles)
        assert done.n_image_tokens == n_tokens
        assert make(marked).prepare(EmbedsFile(done.path)).input.n_tokens == n_tokens
        parts = make(marked, max_tiles=max_tiles).prepare(wide).input.parts
        assert make(marked).prepare(EmbedsFile(done.path)).input.parts == parts


def test_answers_about_marked_tiles_are_the_same_from_anywhere(
    marked: Path, wide: Path, tmp_path: Path
) -> None:
    (done,) = encode_pictures(marked, [wide], tmp_path, n_threads=1)
    question: dict[str, Any] = {"max_tokens": 8}
    with AceStep(marked, n_ctx=512, n_threads=1, cache=tmp_path / "cache") as model:
        answer = model.generate("x", [wide], **question)
        assert answer.usage.image_tokens == 13 * N_TILE + 30
        assert model.generate("x", [EmbedsFile(done.path)], **question).tokens == answer.tokens
        again = model.generate("x", [wide], **question)
        assert again.tokens == answer.tokens
        assert again.usage.cached_tokens > 13 * N_TILE + 30
    with AceStep(marked, n_ctx=512, n_threads=1, cache=tmp_path / "cache") as model:
        from_disk = model.generate("x", [wide], **question)
        assert from_disk.tokens == answer.tokens
        assert from_disk.usage.cached_tokens >= 13 * N_TILE + 30
