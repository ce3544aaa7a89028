import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from acestep_gguf.bundle.schema import Bundle, Vision, VisionFile
from acestep_gguf.errors import ImageError, PromptError
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.embeds_file import EmbedsFile, read_embeds, write_embeds

PIXELS = "ab" * 32


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def embeds(bundle: Bundle) -> ImageEmbeds:
    _, image = bundle.tower()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((image.n_image_tokens, image.n_embd)).astype(np.float32)
    return ImageEmbeds(rows, rng.random(image.n_image_tokens).astype(np.float32))


@pytest.fixture
def path(bundle: Bundle, embeds: ImageEmbeds, tmp_path: Path) -> Path:
    path = tmp_path / "picture.png.safetensors"
    write_embeds(path, embeds, bundle=bundle, precision="float32", pixels_sha256=PIXELS)
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def put_together(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def test_what_was_written_comes_back_to_the_bit(path: Path, bundle: Bundle, embeds: ImageEmbeds) -> None:
    again, metadata = read_embeds(path, bundle)
    assert again.embeds.tobytes() == embeds.embeds.tobytes()
    assert again.patch_attention.tobytes() == embeds.patch_attention.tobytes()
    assert again.sha256 == EmbedsFile(str(path)).read(bundle).sha256 == embeds.sha256
    assert (metadata.pixels_sha256, metadata.precision) == (PIXELS, "float32")


def test_it_is_a_safetensors_file_and_nothing_is_left_beside_it(path: Path, embeds: ImageEmbeds) -> None:
    tensors = load_file(path)
    assert tensors["image_embeds"].tobytes() == embeds.embeds.tobytes()
    assert tensors["patch_attention"].tobytes() == embeds.patch_attention.tobytes()
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_it_as_far_as_the_umask_lets_them(path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_folder_that_cannot_be_written(bundle: Bundle, embeds: ImageEmbeds, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="another folder"):
        write_embeds(
            tmp_path / "none" / "x", embeds, bundle=bundle, precision="float32", pixels_sha256=PIXELS
        )


def test_it_needs_neither_the_towers_files_nor_the_decoder(path: Path, bundle: Bundle) -> None:
    # Another decoder makes no difference.
    fewer = replace(bundle.decoders, files={"Q4_K_M": bundle.decoders.files["Q4_K_M"]})
    assert EmbedsFile(path).read(replace(bundle, decoders=fewer)).embeds.any()


def test_another_models_tower(path: Path, bundle: Bundle) -> None:
    vision, image = bundle.tower()
    record = vision.files["float32"]

    def with_record(record: VisionFile) -> Bundle:
        return replace(bundle, vision=replace(vision, files={**vision.files, "float32": record}))

    assert EmbedsFile(path).read(with_record(record))
    for other in (
        with_record(replace(record, sha256="0" * 64)),
        with_record(replace(record, data=replace(record.data, sha256="0" * 64))),
        replace(bundle, image=replace(image, mean=(0.0, 0.0, 0.0))),
        replace(bundle, vision=Vision(default="int8", files={"int8": vision.files["int8"]})),
    ):
        with pytest.raises(ImageError, match="another model's vision tower: encode the picture with the"):
            EmbedsFile(path).read(other)
    source = replace(bundle.source, vision_model_type=None)
    prompt = replace(bundle.prompt, image_token=None)
    with pytest.raises(PromptError, match="no vision tower"):
        EmbedsFile(path).read(replace(bundle, vision=None, image=None, source=source, prompt=prompt))


def change(part: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[part].update(fields)


@pytest.mark.parametrize(
    "damage",
    [
        change("image_embeds", shape=[2, 512]),
        change("image_embeds", shape=[1024]),
        change("image_embeds", shape=[1] * 90 + [1024]),
        change("image_embeds", shape=[-4, -256]),
        change("image_embeds", shape=[4, 2**70]),
        change("image_embeds", dtype="F16"),
        change("image_embeds", dtype="F64"),
        change("image_embeds", dtype="I32"),
        change("image_embeds", dtype="BF16", shape=[4, 512]),
        change("image_embeds", dtype="F\x1b[31m\n"),
        change("image_embeds", data_offsets=[16, 4112]),
        change("image_embeds", data_offsets=[0, 4100]),
        change("image_embeds", data_offsets=[4096, 0]),
        change("image_embeds", data_offsets=[0]),
        change("patch_attention", shape=[1]),
        change("patch_attention", data_offsets=[2**39, 2**39 + 16]),
        change("__metadata__", format="pt"),
        change("__metadata__", format="p\x1b[31m\nt"),
        change("__metadata__", model="zz"),
        change("__metadata__", precision="float64"),
        change("__metadata__", data_sha256="00" * 32),
        lambda header: header.pop("__metadata__"),
        lambda header: header.pop("patch_attention"),
        lambda header: header.update(more=header["image_embeds"]),
    ],
)
def test_a_header_that_is_wrong(damage: Callable[[dict[str, Any]], Any], path: Path, bundle: Bundle) -> None:
    header, data = parts(path)
    damage(header)
    put_together(path, header, data)
    with pytest.raises(ImageError, match="encode the picture again") as caught:
        EmbedsFile(path).read(bundle)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 60_000, b"null", b"\xff\xfe", b"{}" + b" " * 2**17])
def test_what_is_no_header(raw: bytes, path: Path, bundle: Bundle) -> None:
    put_together(path, raw, b"")
    with pytest.raises(ImageError, match="encode the picture again"):
        EmbedsFile(path).read(bundle)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.sampled_from(("image_embeds", "patch_attention", "__metadata__", "more")),
        st.one_of(
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(("F32", "BF16", "U8", "X")),
                    "shape": st.lists(st.integers(-1, 2**65), max_size=3),
                    "data_offsets": st.lists(st.integers(-1, 2**65), max_size=3),
                }
            ),
            st.integers(),
            st.text(),
        ),
    ),
    data=st.binary(max_size=64),
)
def test_any_header_at_all(header: dict[str, Any], data: bytes, path: Path, bundle: Bundle) -> None:
    header.setdefault("__metadata__", parts(path)[0]["__metadata__"])
    other = path.with_name("other")
    put_together(other, header, data)
    with pytest.raises(ImageError, match="encode the picture again"):
        EmbedsFile(other).read(bundle)


def test_a_header_as_long_as_the_file_is_not_parsed(path: Path, bundle: Bundle) -> None:
    header, data = parts(path)
    names = {str(number): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(2000)}
    put_together(path, header | names, data)
    with pytest.raises(ImageError, match=r"its header claims \d+ bytes|longer than embeds"):
        EmbedsFile(path).read(bundle)


def test_a_length_beyond_the_file(path: Path, bundle: Bundle) -> None:
    content = path.read_bytes()
    for short in (b"", b"\1", content[:8], b"\xff" * 8 + content[8:], content[:-1], content + bytes(10**6)):
        path.write_bytes(short)
        with pytest.raises(ImageError, match="encode the picture again"):
            EmbedsFile(path).read(bundle)


def test_numbers_that_are_none(bundle: Bundle, embeds: ImageEmbeds, tmp_path: Path) -> None:
    for row, column, value in ((0, 0, np.nan), (-1, -1, np.inf)):
        damaged = ImageEmbeds(embeds.embeds.copy(), embeds.patch_attention)
        damaged.embeds[row, column] = value
        path = tmp_path / "x"
        write_embeds(path, damaged, bundle=bundle, precision="float32", pixels_sha256=PIXELS)
        with pytest.raises(ImageError, match="not finite"):
            EmbedsFile(path).read(bundle)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_noticed_wherever_it_is(data: st.DataObject, path: Path, bundle: Bundle) -> None:
    content = path.read_bytes()
    changed = bytearray(content)
    place = data.draw(st.one_of(st.integers(0, 500), st.integers(0, len(content) - 1)))
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        again, _ = read_embeds(path, bundle)
    except ImageError:
        pass
    else:  # white space, or the hash of the pixels, which only tells where the embeds come from
        path.write_bytes(content)
        assert again.sha256 == EmbedsFile(path).read(bundle).sha256
    path.write_bytes(content)


def test_what_is_no_file(bundle: Bundle, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", "x" * 5000, "nu\0ll"):
        with pytest.raises(ImageError, match="acestep-gguf encode"):
            EmbedsFile(path).read(bundle)
