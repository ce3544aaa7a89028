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

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_FILE_BYTES: Final = 128 * 2**20
MAX_PIXELS: Final = 100 * 10**6
WHITE: Final = (255, 255, 255, 255)

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
    EOFError,
    struct.error,
    zlib.error,
)


def pixel_values(source: ImageSource, spec: ImageSpec) -> FloatArray:
    """Pixels of a picture as the vision tower takes them, float32 [1, 3, H, W].

    Raises:
        ImageError: missing, not a JPEG, PNG or WEBP, damaged or too large.
    """
    return preprocess(to_rgb(open_image(source)), spec)


def open_image(source: ImageSource) -> Image.Image:
    """Open and decode a picture, the first frame if it moves; its size is checked before it is decoded.

    Raises:
        ImageError: missing, not a JPEG, PNG or WEBP, damaged or too large.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "the picture")
        return source
    if not isinstance(source, str | os.PathLike | bytes):
        raise ImageError(f"a picture is given as {type(source).__name__}: give a path, bytes or a PIL image.")
    name = "the picture" if isinstance(source, bytes) else os.fsdecode(source)
    data = source if isinstance(source, bytes) else read_file(Path(name))
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB: give a smaller picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what we check or refuse ourselves
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image, name)
            image.load()
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that can be read: give a JPEG, PNG or WEBP.") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(name) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name} is damaged ({error}): save or copy it again.") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it, RGB: turned upright, what is transparent on white, 16 bits as 8.

    Raises:
        ImageError: damaged, or its numbers do not tell what is black and what is white (modes "I", "I;16" and
            "F" of PIL images).
    """
    is_from_file = image.format is not None  # then 16 bits are 16 bits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF data that says nothing of the orientation
            image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise _no_known_range("floating-point numbers")
        if image.mode.startswith("I"):
            return _gray_of_8_bits(image, is_from_file).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
        # Pillow has already undone the inversion of Adobe's CMYK pictures.
        return image.convert("RGB")
    except _DECODER_ERRORS as error:
        raise ImageError(f"the picture is damaged ({error}): save or copy it again.") from error


def preprocess(image: Image.Image, spec: ImageSpec) -> FloatArray:
    """An RGB picture as ``pixel_values``, float32 [1, 3, H, W], in the order of the fields of ``spec``.

    Raises:
        ImageError: so long and narrow that it cannot be resized.
    """
    if spec.pad_to_square is not None:
        image = _pad_to_square(image, spec.pad_to_square)
    if spec.resize_to is not None:
        image = _resize(image, spec, spec.resize_to)
    pixels: UInt8Array = np.asarray(image, np.uint8)  # [H, W, 3]
    if spec.center_crop is not None:
        pixels = _center_crop(pixels, spec.center_crop)
    if pixels.shape[:2] != (spec.size.height, spec.size.width):
        got, wanted = "{1} x {0}".format(*pixels.shape), f"{spec.size.width} x {spec.size.height}"
        raise ImageError(f"the picture is {got} pixels, this model takes {wanted}: scale it first.")
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
            raise ImageError(f"{path} is not a file: give a JPEG, PNG or WEBP.")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): give a JPEG, PNG or WEBP.") from error
    except ValueError as error:  # a null character in the name
        raise ImageError(f"{path} cannot be read ({error}): give a JPEG, PNG or WEBP.") from error


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(name)
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name} is empty: give a picture with at least one pixel.")


def _too_many_pixels(name: str) -> ImageError:
    return ImageError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: give a smaller picture.")


def _gray_of_8_bits(image: Image.Image, is_from_file: bool) -> Image.Image:
    """Grayscale of mode "I" or "I;16" as "L".

    Of 16 bits, the high byte is taken, where Pillow's convert() would clip at 255. A PIL image made of
    numbers up to 255 may have been meant as 8 bits, or be a dark one of 16. Mode "I" has 32 bits, of which
    nobody uses all: up to 255 they are what convert() takes them for, more can mean anything.
    """
    values = np.asarray(image)  # uint16 or int32
    low, high = int(values.min()), int(values.max())
    is_8_bits = 0 <= low <= high <= 255
    if image.mode == "I":
        if not is_8_bits:
            raise _no_known_range(f"whole numbers from {low} to {high}")
        gray = values.astype(np.uint8)
    else:
        if is_8_bits and high and not is_from_file:
            raise _no_known_range(f"16-bit numbers up to {high}")
        gray = (values >> 8).astype(np.uint8)
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
    width, height = to.width, to.height
    if spec.resize == "shortest_edge":
        short, long = sorted(image.size)
        scaled = int(to.height * long / short)
        width, height = (to.height, scaled) if image.width <= image.height else (scaled, to.height)
    elif spec.resize == "longest_edge":
        width, height = _fitting_size(image, to)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"a picture of {image.width} x {image.height} is too long and narrow: crop it first."
        )
    resized = image.resize((width, height), _RESAMPLE[spec.resample])
    if spec.fill is None:
        return resized
    filled = Image.new("RGB", (to.width, to.height), spec.fill)
    filled.paste(resized, ((to.width - width) // 2, (to.height - height) // 2))
    return filled


def _fitting_size(image: Image.Image, to: Size) -> tuple[int, int]:
    """Width and height of ``image`` scaled to fit into ``to``: libmtmd's, which computes in float32."""
    width, height = np.float32(image.width), np.float32(image.height)
    scale = min(np.float32(to.width) / width, np.float32(to.height) / height)
    return min(math.ceil(width * scale), to.width), min(math.ceil(height * scale), to.height)


def _center_crop(pixels: UInt8Array, size: Size) -> UInt8Array:
    """Cut [H, W, 3] to ``size`` around its middle, with zeros where the picture is smaller.

    Halves are rounded as in transformers.image_transforms.center_crop: down for a cut, up for padding.
    """
    height, width = pixels.shape[:2]
    canvas_height, canvas_width = max(height, size.height), max(width, size.width)
    pad_top, pad_left = -((height - canvas_height) // 2), -((width - canvas_width) // 2)
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    canvas[pad_top : pad_top + height, pad_left : pad_left + width] = pixels
    top, left = (height - size.height) // 2 + pad_top, (width - size.width) // 2 + pad_left
    return canvas[top : top + size.height, left : left + size.width]
