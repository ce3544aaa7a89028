import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, TiffTags

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.errors import ImageError, MissingPackageError
from acestep_gguf.vision import image_file as image_file_module
from acestep_gguf.vision.image import crops_of, normalized, opening_bytes, pixel_values, to_rgb
from acestep_gguf.vision.image_file import TILE_LENGTH, TILE_WIDTH, ImageSource, open_image
from acestep_gguf.vision.tiling import tiling_of

pillow_heif.register_heif_opener()  # Pillow writes it then

WHITE, RED = (255, 255, 255), (255, 0, 0)


def preprocess(image: Image.Image, spec: ImageSpec) -> NDArray[np.float32]:
    (crop,) = crops_of(image, tiling_of(spec))
    return normalized(crop, spec)


def spec(**changes: Any) -> ImageSpec:
    size = Size(height=32, width=32)
    fields: dict[str, Any] = {
        "pad_to_square": None,
        "resize": "shortest_edge",
        "resize_to": size,
        "resample": "bicubic",
        "center_crop": size,
        "rescale_factor": 1 / 255,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "size": size,
        "n_image_tokens": 4,
        "n_embd": 8,
    }
    return ImageSpec(**fields | changes)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(mode)
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rgb(source: ImageSource) -> Image.Image:
    return to_rgb(open_image(source))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_path_bytes_and_pil_image_are_the_same_picture(tmp_path: Path, format: str) -> None:
    data = encoded(noise(40, 30), format)
    path = tmp_path / "picture"
    path.write_bytes(data)
    (expected,) = pixel_values(Image.open(io.BytesIO(data)), spec())
    for source in (path, str(path), data):
        assert np.array_equal(pixel_values(source, spec())[0], expected)
    assert expected.shape == (1, 3, 32, 32)
    assert expected.dtype == np.float32


def test_values_are_rescaled_and_normalized_per_channel() -> None:
    (values,) = pixel_values(Image.new("RGB", (32, 32), (255, 51, 0)), spec())
    expected = [(1.0 - 0.5) / 0.2, (0.2 - 0.4) / 0.3, (0.0 - 0.3) / 0.4]
    assert values[0, :, 7, 9].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (97, 41), (5, 3), (33, 32)])
def test_the_middle_of_a_picture_is_kept(width: int, height: int) -> None:
    # A column (or row) in the middle stays in the middle when the shorter edge fits already.
    image = Image.new("RGB", (width, height))
    image.paste(WHITE, (width // 2 - width // 8, 0, width // 2 + width // 8 + 1, height))
    values = preprocess(image, spec(mean=(0, 0, 0), std=(1, 1, 1)))
    assert values[0, 0, 16, 16] == pytest.approx(1.0, abs=0.02)
    assert values.shape == (1, 3, 32, 32)


def test_a_small_picture_is_padded_with_black_when_cropped() -> None:
    plain = spec(resize=None, resize_to=None, mean=(0, 0, 0), std=(1, 1, 1))
    values = preprocess(Image.new("RGB", (10, 6), WHITE), plain)[0, 0]
    rows, columns = np.nonzero(values)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 18, 11, 20)


def test_padding_to_a_square_centers_the_picture_on_the_color() -> None:
    padded = spec(pad_to_square=(10, 20, 30), resize="exact", center_crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    values = preprocess(Image.new("RGB", (32, 16), WHITE), padded)[0] * 255
    assert values[:, 0, 0].tolist() == pytest.approx([10, 20, 30], abs=1e-3)
    assert (values[0, 8:24] > 254).all()
    assert (values[0, 24:] < 11).all()


def test_longest_edge_fits_and_fills() -> None:
    side = Size(height=28, width=28)
    kept = {"center_crop": None, "size": side, "mean": (0, 0, 0), "std": (1, 1, 1)}
    filling = spec(resize="longest_edge", resize_to=side, fill=(10, 20, 30), **kept)
    image = noise(28, 13)
    pixels = np.rint(preprocess(image, filling)[0].transpose(1, 2, 0) * 255)
    assert np.array_equal(pixels[7:20], np.asarray(image))  # 15 rows are left: 7 above, 8 below
    assert (np.delete(pixels, np.s_[7:20], axis=0) == (10, 20, 30)).all()


def test_exact_resize_distorts() -> None:
    values = preprocess(noise(90, 20), spec(resize="exact", center_crop=None))
    assert values.shape == (1, 3, 32, 32)


def test_a_picture_of_the_wrong_size_is_refused_when_nothing_scales_it() -> None:
    with pytest.raises(ImageError, match="10 x 6"):
        preprocess(Image.new("RGB", (10, 6)), spec(resize=None, resize_to=None, center_crop=None))


def test_exif_orientation_turns_the_picture_upright() -> None:
    image = Image.new("RGB", (20, 10), WHITE)
    image.paste(RED, (0, 0, 10, 10))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    upright = rgb(encoded(image, "PNG", exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == RED
    assert upright.getpixel((5, 17)) == WHITE


def test_transparent_pixels_are_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((1, 1), (255, 0, 0, 255))
    rgba.putpixel((2, 2), (0, 0, 0, 128))
    for data in (encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True, exact=True)):
        seen = rgb(data)
        assert seen.getpixel((0, 0)) == WHITE
        assert seen.getpixel((1, 1)) == RED
        assert seen.getpixel((2, 2)) == (127, 127, 127)
    la = Image.new("LA", (2, 2), (0, 0))
    assert rgb(encoded(la, "PNG")).getpixel((0, 0)) == WHITE


def test_palette_pictures_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert rgb(encoded(palette, "PNG")).getpixel((1, 0)) == (0, 0, 255)
    seen = rgb(encoded(palette, "PNG", transparency=1))
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == (RED, WHITE)


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_color_key_is_white(mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 9 if mode == "L" else (9, 9, 9))
    seen = rgb(encoded(image, "PNG", transparency=key))
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == (WHITE, (9, 9, 9))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_becomes_gray(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), 255)
    seen = rgb(encoded(image, "PNG"))
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == ((0, 0, 0), WHITE)


def from_numbers(*values: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def seen(image: Image.Image | bytes) -> list[int]:
    rgb_values = np.asarray(rgb(image))
    assert (rgb_values == rgb_values[..., :1]).all()
    return [int(value) for value in rgb_values[0, :, 0]]


@pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2")])
def test_16_bit_gray_is_scaled_not_clipped(dtype: Any) -> None:
    gray = from_numbers(0, 0x1234, 0x8000, 0xFFFF, dtype=dtype)
    assert seen(gray) == [0, 0x12, 0x80, 0xFF]
    assert seen(encoded(gray, "PNG")) == [0, 0x12, 0x80, 0xFF]


def test_a_transparent_gray_of_16_bits_is_white() -> None:
    gray = from_numbers(0, 0x1234, 0x1235, dtype=np.uint16)
    assert seen(encoded(gray, "PNG", transparency=0x1234)) == [0, 0xFF, 0x12]


def test_a_dark_16_bit_file_stays_dark() -> None:
    dark = encoded(from_numbers(0, 100, 255, dtype=np.uint16), "PNG")
    assert seen(dark) == seen(Image.open(io.BytesIO(dark))) == [0, 0, 0]


def test_16_bit_numbers_that_may_be_8_bits_are_refused() -> None:
    with pytest.raises(ImageError, match="16-bit numbers up to 200 does not tell which is white"):
        to_rgb(from_numbers(0, 100, 200, dtype=np.uint16))
    assert seen(from_numbers(0, 0, dtype=np.uint16)) == [0, 0]


def test_whole_numbers_of_8_bits_are_what_they_are() -> None:
    whole = from_numbers(0, 100, 255, dtype=np.int32)
    assert whole.mode == "I"
    assert seen(whole) == seen(whole.convert("L")) == [0, 100, 255]
    assert seen(Image.new("L", (2, 1), 77).convert("I")) == [77, 77]


@pytest.mark.parametrize("values", [(-1, 5), (0, 256), (0, 0x1234), (0, 0x12345), (-(2**31), 2**31 - 1)])
def test_whole_numbers_of_more_bits_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="from {} to {} does not tell which is white".format(*values)):
        to_rgb(from_numbers(*values, dtype=np.int32))


def test_16_bit_colors_keep_their_high_byte() -> None:
    assert rgb(png(2, 1, bits=16, color=2, row=struct.pack(">6H", 0xFFFF, 0x1234, 0, 0, 0, 0x8000))).getpixel(
        (0, 0)
    ) == (0xFF, 0x12, 0)


def test_cmyk_is_not_inverted() -> None:
    # Pillow writes CMYK as Adobe does, inverted, with the marker that says so.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = rgb(encoded(cmyk, "JPEG", quality=95)).getpixel((8, 8))
    assert red == pytest.approx(RED, abs=6)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, WHITE)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert rgb(data).getpixel((4, 4)) == RED


def test_floating_point_pictures_are_refused() -> None:
    for picture in (Image.new("F", (4, 4)), from_numbers(0.0, 0.5, 1.0, dtype=np.float32)):
        with pytest.raises(ImageError, match="floating-point numbers does not tell which is white"):
            to_rgb(picture)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "JPEG2000"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(ImageError, match="give JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC or PDF"):
        open_image(encoded(noise(16, 16), format))


@pytest.mark.parametrize(
    ("data", "format"),
    [(b"<svg xmlns=", "SVG"), (b"8BPS\0\x01", "PSD"), (b"\0\0\0\x0cJXL \r\n", "JPEG XL")],
)
def test_a_known_format_that_is_not_read_is_named(data: bytes, format: str) -> None:
    with pytest.raises(ImageError, match=f"the picture is {format}, which is not read"):
        open_image(data + bytes(64))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("GIF", {}),
        ("MPO", {}),
        ("HEIF", {"quality": 100, "chroma": 444}),
    ],
)
def test_other_formats_are_the_picture(format: str, options: dict[str, Any]) -> None:
    picture = noise(24, 18, "L").convert("RGB") if format == "GIF" else noise(4, 3).resize((24, 18))
    data = encoded(picture, format, **options)
    lost = 0 if format in ("BMP", "TIFF", "GIF") else 40
    difference = np.asarray(rgb(data)).astype(int) - np.asarray(picture)
    assert np.abs(difference).max() <= lost
    assert opening_bytes(data, spec()) > 0


def test_a_phone_saves_heic_turned_and_with_other_brands() -> None:
    red_above = Image.new("RGB", (64, 128), WHITE)
    red_above.paste(RED, (0, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = red_above.transpose(Image.Transpose.ROTATE_90)  # as a sensor on its side sees it
    data = encoded(turned, "HEIF", exif=exif.tobytes())
    for brand in (b"heic", b"mif1", b"msf1"):
        seen = rgb(data[:8] + brand + data[12:])
        assert seen.size == (64, 128)
        assert seen.getpixel((9, 9)) == pytest.approx(RED, abs=12)
        assert seen.getpixel((9, 119)) == pytest.approx(WHITE, abs=12)
    assert opening_bytes(data, spec()) > 0


def test_heic_names_its_extra_where_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(24, 18), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(MissingPackageError) as caught:
        open_image(data)
    wanted = "the picture is HEIC, which needs the pillow-heif package: pip install 'acestep-gguf[heic]'."
    assert str(caught.value) == wanted


def test_a_transparent_gif_is_on_white_and_its_first_frame() -> None:
    frames = [Image.new("RGBA", (8, 8), color) for color in ((255, 0, 0, 255), (0, 0, 255, 255))]
    frames[0].putpixel((0, 0), (0, 0, 0, 0))
    seen = rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (seen.getpixel((0, 0)), seen.getpixel((4, 4))) == (WHITE, RED)


def test_a_tiff_may_be_of_16_bits_cmyk_or_floating_point() -> None:
    gray = Image.fromarray(np.array([[0x1234, 0xFF00]], np.uint16))
    assert [rgb(encoded(gray, "TIFF")).getpixel((x, 0)) for x in (0, 1)] == [(0x12,) * 3, WHITE]
    assert rgb(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")).getpixel((1, 1)) == RED
    with pytest.raises(ImageError, match="floating-point"):
        rgb(encoded(Image.new("F", (4, 4)), "TIFF"))


def test_a_phone_saves_several_pictures_in_one_jpeg() -> None:
    data = encoded(Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[noise(16, 16)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert rgb(data).getpixel((8, 8)) == pytest.approx(RED, abs=6)
    assert opening_bytes(data, spec()) > 0


def test_a_tile_larger_than_its_tiff_is_refused() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for private in (65000, 65001):  # Pillow writes no tiles
        tags.tagtype[private], tags[private] = TiffTags.LONG, 2**15
    data = encoded(noise(16, 16), "TIFF", tiffinfo=tags)
    for private, tag in ((65000, TILE_WIDTH), (65001, TILE_LENGTH)):
        entry = struct.pack("<HHI", private, TiffTags.LONG, 1)
        assert entry in data
        data = data.replace(entry, struct.pack("<HHI", tag, TiffTags.LONG, 1))
    with pytest.raises(ImageError, match="tiles larger than itself"):
        open_image(data)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("I am not a picture")
    for source in (text, b"", b"\x89PNG", tmp_path, tmp_path / "none.png", "nul\0name"):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [5, None, bytearray(b"x"), np.zeros((4, 4, 3), np.uint8), io.BytesIO()])
def test_what_is_given_in_another_way_is_refused(source: Any) -> None:
    with pytest.raises(ImageError, match="give a path, bytes or a PIL image"):
        open_image(source)


def test_the_path_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "none.png")
    assert str(caught.value).count("none.png") == 1
    assert "(No such file or directory)" in str(caught.value)


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path / "fifo")


def test_size_is_checked_before_decoding() -> None:
    # A file of a few hundred bytes that claims 2.5 billion pixels.
    with pytest.raises(ImageError, match="million pixels"):
        open_image(png(50_000, 50_000, bits=8, color=2, row=b""))
    with pytest.raises(ImageError, match="million pixels"):
        open_image(png(12_000, 12_000, bits=8, color=2, row=b""))


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file_module, "MAX_IMAGE_BYTES", 1 << 20)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    for source in (path, bytes((1 << 20) + 1)):
        with pytest.raises(ImageError, match="larger than 1 MiB"):
            open_image(source)


def test_a_thread_of_pixels_is_refused_instead_of_blown_up() -> None:
    for size in ((60_000, 1), (1, 60_000)):
        with pytest.raises(ImageError):
            preprocess(Image.new("RGB", size), spec(resize_to=Size(height=224, width=224)))
        with pytest.raises(ImageError):
            preprocess(Image.new("RGB", size), spec(pad_to_square=(0, 0, 0)))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_a_truncated_file_is_refused(format: str) -> None:
    data = encoded(noise(64, 64), format)
    with pytest.raises(ImageError):
        open_image(data[: len(data) // 2])


SAMPLES = [
    encoded(
        noise(24, 18), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    encoded(noise(24, 18), "JPEG"),
    encoded(noise(24, 18, "RGBA"), "WEBP"),
    encoded(noise(24, 18).convert("P"), "PNG", transparency=3),
    encoded(noise(24, 18), "GIF"),
    encoded(noise(24, 18), "BMP"),
    encoded(noise(24, 18), "TIFF", compression="tiff_lzw"),
    encoded(noise(24, 18, "RGBA"), "AVIF"),
    encoded(noise(24, 18), "HEIF"),
]


@settings(max_examples=400, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    damage=st.lists(
        st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=5
    ),
    length=st.integers(10, 4000),
)
def test_damaged_bytes_raise_nothing_but_image_errors(
    sample: bytes, damage: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(sample[:length])
    for position, patch in damage:
        data[position % len(data) : position % len(data) + len(patch)] = patch
    try:
        (values,) = pixel_values(bytes(data), spec())
    except ImageError:
        return
    assert values.shape == (1, 3, 32, 32)
    assert np.isfinite(values).all()


def png(width: int, height: int, *, bits: int, color: int, row: bytes) -> bytes:
    """A PNG with one row of pixels, whatever size it claims."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
