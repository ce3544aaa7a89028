import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError, ImageError
from acestep_gguf.progress import Progress
from acestep_gguf.storage import file_identity
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.embeds_file import EmbedsFile, write_embeds
from acestep_gguf.vision.encoder import REMEMBERED, ImageEncoder
from acestep_gguf.vision.image_file import pdf_pages
from acestep_gguf.vision.tower import VisionTower
from tests.support.pdf_files import BLUE, RED, pdf
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_smolvlm import TinySmolVLM


def make(bundle: Path, **options: Any) -> ImageEncoder:
    return ImageEncoder(bundle, Bundle.read(bundle), **{"n_threads": 1, **options})


def encode(encoder: ImageEncoder, source: Any) -> ImageEmbeds:
    return encoder.encode(encoder.prepare(source))


def test_pictures_are_remembered_by_their_pixels(tiny_bundle: Path, picture: Path) -> None:
    encoder = make(tiny_bundle)
    first = encode(encoder, picture)
    assert encode(encoder, picture.read_bytes()) is first
    assert encode(encoder, Image.open(picture)) is first
    assert encode(encoder, encoder.prepare(picture)) is first
    other = Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert not np.array_equal(encode(encoder, other).embeds, first.embeds)
    for gray in range(REMEMBERED - 1):
        encode(encoder, Image.new("L", (28, 28), gray))
    assert encode(encoder, picture) is not first


def test_closing_frees_the_tower(tiny_bundle: Path, picture: Path) -> None:
    encoder = make(tiny_bundle)
    tower = encoder.load()
    assert encoder.load() is tower
    first = encode(encoder, picture)
    encoder.close()
    assert np.array_equal(encode(encoder, picture).embeds, first.embeds)
    assert encoder.load() is not tower


def test_a_tower_that_is_loaded_beside_is_loaded_once(
    tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, made = ImageEncoder._new_tower, list[VisionTower]()

    def counted(encoder: ImageEncoder) -> VisionTower:
        made.append(new(encoder))
        return made[-1]

    monkeypatch.setattr(ImageEncoder, "_new_tower", counted)
    encoder = make(tiny_bundle)
    encoder.load_beside([])
    assert not made, "nothing needs it"
    encoder.load_beside([picture])
    assert encoder.load() is encoder.load() is made[0]
    assert len(made) == 1


def test_what_fails_beside_is_told_by_load(bundle_copy: Path, picture: Path) -> None:
    encoder = make(bundle_copy, precision="float32")
    encoder.prepare(picture)
    (bundle_copy / Bundle.read(bundle_copy).vision_file("float32").file).write_bytes(b"")
    encoder.load_beside([picture])
    with pytest.raises(BundleError):
        encoder.load()


@pytest.mark.parametrize("load", [ImageEncoder.load_beside, ImageEncoder.encode_ahead])
def test_all_pictures_are_opened_before_the_tower_is_loaded(
    load: Callable[..., None], bundle_copy: Path, picture: Path, tmp_path: Path
) -> None:
    encoder = make(bundle_copy, precision="float32")
    encoder.prepare(picture)
    (bundle_copy / Bundle.read(bundle_copy).vision_file("float32").file).write_bytes(b"")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(ImageError, match="damaged"):
        load(encoder, [picture, damaged])


def test_encoding_ahead_is_told_picture_by_picture(tiny_bundle: Path, picture: Path) -> None:
    told: list[Progress] = []
    encoder = make(tiny_bundle)
    encoder.encode_ahead([picture, Image.new("L", (9, 9))], told.append)
    assert told == [Progress("encoding", 0, 2), Progress("encoding", 1, 2)]


def test_a_picture_that_there_is_no_memory_to_open_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (1000, 1000)).save(path)
    encoder = make(tiny_bundle, opening_limit=7 * 10**6)
    for source in (path, Image.open(path)):
        with pytest.raises(ImageError, match=r"takes 8.0 MB of memory to open, and 7.0 MB are left: give a"):
            encoder.prepare(source)
    make(tiny_bundle, opening_limit=9 * 10**6).prepare(path)


def test_another_process_finds_embeds_on_disk(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    encoder = make(tiny_bundle, cache=cache)
    expected = encode(encoder, picture)
    cache.close()
    other = make(tiny_bundle, cache=DiskCache(tmp_path))
    found = other.recall(other.prepare(picture))
    assert found is not None
    assert found.embeds.tobytes() == expected.embeds.tobytes()
    assert found.patch_attention.tobytes() == expected.patch_attention.tobytes()
    # So many tokens of it are no reason to encode it again, but to the decoder it is another picture.
    fewer = make(tiny_bundle, cache=DiskCache(tmp_path), image_tokens=2)
    prepared = fewer.prepare(picture)
    assert fewer.recall(prepared) is not None
    assert fewer.rows(prepared).shape == (2, expected.embeds.shape[1])
    assert (prepared.input.n_tokens, len(prepared.input)) == (2, 2)
    assert prepared.input.key != other.prepare(picture).input.key


@pytest.mark.parametrize("options", [{"n_threads": 2}, {"precision": "int8"}])
def test_another_tower_makes_other_embeds(
    tiny_bundle: Path, picture: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    cache = DiskCache(tmp_path)
    encode(make(tiny_bundle, cache=cache, precision="float32"), picture)
    cache.close()
    encoder = make(tiny_bundle, **{"cache": DiskCache(tmp_path), "precision": "float32", **options})
    assert encoder.recall(encoder.prepare(picture)) is None


def test_embeds_from_a_file(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    encoder = make(tiny_bundle)
    expected = encode(encoder, picture)
    bundle = Bundle.read(tiny_bundle)
    path = tmp_path / "picture.safetensors"
    write_embeds(path, expected, bundle=bundle, precision=encoder.precision, pixels_sha256="0" * 64)
    other = make(tiny_bundle)
    prepared = other.prepare(EmbedsFile(path))
    assert np.array_equal(other.rows(prepared), expected.embeds)
    assert prepared.input.key != encoder.prepare(picture).input.key, "it only claims to be that picture"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError):
        other.prepare(EmbedsFile(path))


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model that takes pictures of the same size."""
    folder = tmp_path_factory.mktemp("other")
    convert_checkpoint(TinyCheckpoint(seed=1).write(folder / "checkpoint"), folder / "bundle", ("Q8_0",))
    return folder / "bundle"


OTHER_MODEL = "prepared by another model, or one with other settings"


@pytest.mark.parametrize("other", [{"precision": "int8"}, {"n_threads": 2}, {"image_tokens": 2}])
def test_a_picture_that_was_prepared_with_other_settings(
    tiny_bundle: Path, picture: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """Its embeds would be kept under the name of the other's, and recalled by processes to come."""
    cache = DiskCache(tmp_path)
    encoder = make(tiny_bundle, cache=cache, precision="float32")
    prepared = make(tiny_bundle, **{"precision": "float32", **other}).prepare(picture)
    with pytest.raises(ImageError, match=OTHER_MODEL):
        encode(encoder, prepared)
    cache.close()
    assert cache.contents().entries == 0
    same = make(tiny_bundle, precision="float32").prepare(picture)
    assert np.array_equal(encode(encoder, same).embeds, encode(encoder, picture).embeds)


def test_a_picture_that_was_prepared_by_another_model(
    tiny_bundle: Path, other_bundle: Path, picture: Path
) -> None:
    with pytest.raises(ImageError, match=OTHER_MODEL):
        make(tiny_bundle).prepare(make(other_bundle).prepare(picture))


def test_embeds_that_were_prepared_for_another_model(
    tiny_bundle: Path, other_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    encoder = make(tiny_bundle)
    path = tmp_path / "picture.safetensors"
    write_embeds(
        path,
        encode(encoder, picture),
        bundle=Bundle.read(tiny_bundle),
        precision=encoder.precision,
        pixels_sha256="0" * 64,
    )
    prepared = encoder.prepare(EmbedsFile(path))
    # Threads and precision of this tower have no part in what another one made.
    assert make(tiny_bundle, n_threads=2, precision="float32").prepare(prepared) is prepared
    for other in (make(other_bundle), make(tiny_bundle, image_tokens=2)):
        with pytest.raises(ImageError, match=OTHER_MODEL):
            other.prepare(prepared)


@pytest.mark.slow
def test_the_same_embeds_in_another_layout_are_another_picture(tmp_path: Path) -> None:
    """Or what the decoder computed of one would be taken for the other's."""
    checkpoint = TinySmolVLM(decoder="smollm").write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"], vision=["float32"])
    encoder, bundle = make(tmp_path / "bundle"), Bundle.read(tmp_path / "bundle")
    upright = Image.linear_gradient("L").resize((60, 100)).convert("RGB")
    embeds = encode(encoder, upright)
    keys = set()
    for name, size in (("a", (60, 100)), ("b", (100, 60)), ("c", (60, 100))):
        path = tmp_path / f"{name}.safetensors"
        write_embeds(path, embeds, bundle=bundle, precision="float32", pixels_sha256="0" * 64, size=size)
        keys.add(encoder.prepare(EmbedsFile(path)).input.key)
    assert len(keys) == 2


def test_a_file_is_decoded_once(tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_identity, "LONGEST_TICK_NS", 0)
    encoder = make(tiny_bundle)
    prepared = encoder.prepare(picture)
    assert encoder.prepare(str(picture)) is prepared
    assert encoder.prepare(picture.read_bytes()) is not prepared
    # Another picture with as many bytes and the old time.
    before, data = picture.stat(), bytearray(picture.read_bytes())
    time.sleep(0.05)  # the clock of the file system ticks
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture)
    changed = picture.read_bytes()
    picture.write_bytes(changed + bytes(max(0, len(data) - len(changed))))
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert encoder.prepare(picture).sha256 != prepared.sha256
    encoder.close()
    assert encoder.prepare(picture) is not prepared


def test_each_page_of_a_pdf_is_decoded_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_identity, "LONGEST_TICK_NS", 0)
    scan = tmp_path / "scan.pdf"
    scan.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    encoder = make(tiny_bundle)
    first, second = map(encoder.prepare, pdf_pages(scan))
    assert first.sha256 != second.sha256
    assert [encoder.prepare(page) for page in pdf_pages(scan)] == [first, second]


def test_a_file_that_was_just_written_may_change_unnoticed(
    tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_identity, "LONGEST_TICK_NS", 10**15)
    encoder = make(tiny_bundle)
    assert encoder.prepare(picture) is not encoder.prepare(picture)


def test_few_opened_pictures_are_remembered(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_identity, "LONGEST_TICK_NS", 0)
    encoder = make(tiny_bundle)
    first = encoder.prepare(picture)
    for number in range(REMEMBERED):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture.read_bytes())
        encoder.prepare(path)
    assert encoder.prepare(picture) is not first
