"""A picture becomes ``pixel_values``: open it, see it as a person would, process it as the checkpoint says.

The numbers are those of transformers' ``CLIPImageProcessorPil`` and ``LlavaImageProcessorPil``, bit for bit.
"""

import io
import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from acestep_gguf.bundle.schema import ImageSpec, Size
from acestep_gguf.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image
UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

# Pillow's names of them; MPO is a JPEG file with several pictures in it, as phones write.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
KINDS: Final = "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF"
# What files are often that cannot be read, by bytes at their place in the file.
OTHER_FORMATS: Final = (
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")),
)
MAX_FILE_BYTES: Final = 128 * 2**20
MAX_PIXELS: Final = 100 * 10**6
WHITE: Final = (255, 255, 255, 255)
PIXEL_BYTES: Final = 4  # of a colour picture in Pillow
# Bytes a pixel, at most, while a file is decoded and made RGB. libjpeg keeps the coefficients of a
# progressive picture, libwebp two canvases; Pillow's picture comes on top, and then the one in RGB.
# libtiff may have one strip of the whole picture, libavif and dav1d planes of 16 bits.
OPENING_BYTES: Final = {
    "PNG": 8, "JPEG": 12, "MPO": 12, "WEBP": 16, "GIF": 8, "BMP": 8, "TIFF": 12, "AVIF": 20
}  # fmt: skip
MAX_TILE_PIXELS: Final = 2**20  # of a TIFF's tile that is larger than its picture
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
TILE: Final = 512  # side of what is made RGB at a time, since some ways to it take several copies

_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# What Pillow raises on damaged files; its documentation names only the first two.
_DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)


def pixel_values(source: ImageSource, spec: ImageSpec) -> FloatArray:
    """Pixels of a picture as the vision tower takes them, float32 [1, 3, H, W].

    Raises:
        ImageError: missing, of another format, damaged or too large.
    """
    return preprocess(to_rgb(open_image(source)), spec)


def picture_name(source: ImageSource) -> str:
    """What messages call a picture: its path, or "the picture"."""
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else "the picture"


def opening_bytes(source: ImageSource, spec: ImageSpec) -> int:
    """Memory that ``pixel_values`` takes at most meanwhile, known without decoding the picture.

    Raises:
        ImageError: missing, of another format, too large, or so long and narrow that it cannot be
            resized.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "the picture")
        n_file, per_pixel, (width, height) = 0, 2 * PIXEL_BYTES, source.size  # upright, and in RGB
    else:
        image, n_file = _open_undecoded(source)
        per_pixel, (width, height) = OPENING_BYTES[str(image.format)], image.size
    opened = 2 * n_file + per_pixel * width * height  # libwebp has a copy of the file
    most = PIXEL_BYTES * width * height
    if spec.pad_to_square is not None:
        width = height = max(width, height)
    padded = most + PIXEL_BYTES * width * height
    if spec.resize_to is None:
        return max(opened, padded)
    resized_width, resized_height = _resized_size((width, height), spec, spec.resize_to)
    # Pillow resizes all rows to their new width first.
    return max(opened, padded, PIXEL_BYTES * (width * height + resized_width * (height + resized_height)))


def open_image(source: ImageSource) -> Image.Image:
    """Open and decode a picture, the first frame if it moves; its size is checked before it is decoded.

    Raises:
        ImageError: missing, of another format, damaged or too large.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "the picture")
        return source
    image, _ = _open_undecoded(source)
    with _refusing_damage(picture_name(source)):
        image.load()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it, RGB: turned upright, what is transparent on white, 16 bits as 8.

    Raises:
        ImageError: damaged, or its numbers do not tell what is black and what is white (modes "I", "I;16" and
            "F" of PIL images).
    """
    is_from_file = image.format is not None  # then 16 bits are 16 bits
    with _refusing_damage("the picture"):
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise _no_known_range("floating-point numbers")
        if image.mode.startswith("I"):
            _check_range(image, is_from_file)
        if image.mode == "RGB" and not image.has_transparency_data:
            return image
        rgb = Image.new("RGB", image.size)
        for corner, tile in _tiles(image):
            rgb.paste(_tile_to_rgb(tile), corner)
        return rgb


def preprocess(image: Image.Image, spec: ImageSpec) -> FloatArray:
    """An RGB picture as ``pixel_values``, float32 [1, 3, H, W], in the order of the fields of ``spec``.

    Raises:
        ImageError: so long and narrow that it cannot be resized.
    """
    if spec.pad_to_square is not None:
        image = _pad_to_square(image, spec.pad_to_square)
    if spec.resize_to is not None:
        image = _resize(image, spec, spec.resize_to)
    if spec.center_crop is not None:
        image = _center_crop(image, spec.center_crop)
    if image.size != (spec.size.width, spec.size.height):
        got, wanted = f"{image.width} x {image.height}", f"{spec.size.width} x {spec.size.height}"
        raise ImageError(f"the picture is {got} pixels, this model takes {wanted}: scale it first.")
    pixels: UInt8Array = np.asarray(image, np.uint8)  # [H, W, 3]
    # transformers rescales in float64 and normalizes in float32.
    scaled = (pixels.astype(np.float64) * spec.rescale_factor).astype(np.float32)
    normalized = (scaled - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file, one more than ``MAX_FILE_BYTES`` at most.

    Raises:
        ImageError: it is missing, not a regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise ImageError(f"{path} is not a file: give {KINDS}.")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): give {KINDS}.") from error
    except ValueError as error:  # a null character in the name
        raise ImageError(f"{path} cannot be read ({error}): give {KINDS}.") from error


def _open_undecoded(source: str | os.PathLike[str] | bytes) -> tuple[Image.Image, int]:
    """A picture whose pixels are not decoded yet, and the size of its file; errors as open_image's."""
    if not isinstance(source, str | os.PathLike | bytes):
        raise ImageError(f"a picture is given as {type(source).__name__}: give a path, bytes or a PIL image.")
    name = picture_name(source)
    data = source if isinstance(source, bytes) else read_file(Path(name))
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB: give a smaller picture.")
    with _refusing_damage(name):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise _unknown_format(data, name) from None
        _check_size(image, name)
        _check_tiles(image, name)
    return image, len(data)


@contextmanager
def _refusing_damage(name: str) -> Iterator[None]:
    """Let what Pillow raises inside be ImageErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what we check, refuse or need not know
            yield
    except Image.DecompressionBombError:
        raise _too_many_pixels(name) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name} is damaged ({error}): save or copy it again.") from error


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(name)
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name} is empty: give a picture with at least one pixel.")


def _check_tiles(image: Image.Image, name: str) -> None:
    """Refuse a TIFF whose tiles would take more memory than its picture."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > max(image.width * image.height, MAX_TILE_PIXELS):
        raise ImageError(f"{name} has tiles larger than itself: save it again.")


def _unknown_format(data: bytes, name: str) -> ImageError:
    for place, magic, format in OTHER_FORMATS:
        if data.startswith(magic, place):
            return ImageError(f"{name} is {format}, which is not read: save it as PNG or JPEG.")
    return ImageError(f"{name} is not a picture that can be read: give {KINDS}.")


def _too_many_pixels(name: str) -> ImageError:
    return ImageError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: give a smaller picture.")


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """The picture in pieces, each with its left upper corner."""
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            right, bottom = min(left + TILE, image.width), min(top + TILE, image.height)
            yield (left, top), image.crop((left, top, right, bottom))


def _tile_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _gray_of_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")  # Pillow has already undone the inversion of Adobe's CMYK pictures


def _check_range(image: Image.Image, is_from_file: bool) -> None:
    """Refuse grayscale of mode "I" or "I;16" whose numbers do not tell what is white.

    A PIL image made of numbers up to 255 may have been meant as 8 bits, or be a dark one of 16. Mode "I" has
    32 bits, of which nobody uses all: up to 255 they are what convert() takes them for, more can mean
    anything.
    """
    tiles = (np.asarray(tile) for _, tile in _tiles(image))  # int32 or uint16
    ranges = [(int(values.min()), int(values.max())) for values in tiles]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    is_8_bits = 0 <= low <= high <= 255
    if image.mode == "I" and not is_8_bits:
        raise _no_known_range(f"whole numbers from {low} to {high}")
    if image.mode != "I" and is_8_bits and high and not is_from_file:
        raise _no_known_range(f"16-bit numbers up to {high}")


def _gray_of_8_bits(image: Image.Image) -> Image.Image:
    """Grayscale of mode "I" or "I;16" as "L": of 16 bits the high byte, where convert() would clip at 255."""
    values = np.asarray(image)  # int32 or uint16
    gray = (values if image.mode == "I" else values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _no_known_range(numbers: str) -> ImageError:
    return ImageError(
        f"a picture of {numbers} does not tell which is white: convert it to 8 bits ('L' or 'RGB') first."
    )


def _pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    if side * side > MAX_PIXELS:
        raise _too_many_pixels("the picture, padded to a square,")
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resize(image: Image.Image, spec: ImageSpec, to: Size) -> Image.Image:
    width, height = _resized_size(image.size, spec, to)
    resized = image.resize((width, height), _RESAMPLE[spec.resample])
    if spec.fill is None:
        return resized
    filled = Image.new("RGB", (to.width, to.height), spec.fill)
    filled.paste(resized, ((to.width - width) // 2, (to.height - height) // 2))
    return filled


def _resized_size(size: tuple[int, int], spec: ImageSpec, to: Size) -> tuple[int, int]:
    """Width and height that a picture of ``size`` is resized to."""
    width, height = to.width, to.height
    if spec.resize == "shortest_edge":
        short, long = sorted(size)
        scaled = int(to.height * long / short)
        width, height = (to.height, scaled) if size[0] <= size[1] else (scaled, to.height)
    elif spec.resize == "longest_edge":
        width, height = _fitting_size(size, to)
    if width * height > MAX_PIXELS:
        raise ImageError(f"a picture of {size[0]} x {size[1]} is too long and narrow: crop it first.")
    return width, height


def _fitting_size(size: tuple[int, int], to: Size) -> tuple[int, int]:
    """Width and height of ``size`` scaled to fit into ``to``: libmtmd's, which computes in float32."""
    width, height = np.float32(size[0]), np.float32(size[1])
    scale = min(np.float32(to.width) / width, np.float32(to.height) / height)
    return min(math.ceil(width * scale), to.width), min(math.ceil(height * scale), to.height)


def _center_crop(image: Image.Image, size: Size) -> Image.Image:
    """Cut a picture to ``size`` around its middle, with zeros where it is smaller.

    Halves are rounded as in transformers.image_transforms.center_crop: down for a cut, up for padding.
    """
    left, top = (image.width - size.width) // 2, (image.height - size.height) // 2
    return image.crop((left, top, left + size.width, top + size.height))
