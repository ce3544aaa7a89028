"""A picture becomes ``pixel_values``: open it, see it as a person would, process it as the checkpoint says.

The numbers are those of transformers' ``CLIPImageProcessorPil`` and ``LlavaImageProcessorPil``, bit for bit.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.image_file import (
    MAX_PIXELS,
    PIXEL_BYTES,
    ImageSource,
    open_image,
    refusing_damage,
    too_many_pixels,
    undecoded,
)

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

WHITE: Final = (255, 255, 255, 255)
TILE: Final = 512  # side of what is made RGB at a time, since some ways to it take several copies
# A PDF's page is rendered so much finer than the model sees it: resizing evens out what rendering cuts off.
PAGE_FINENESS: Final = 2

_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def pixel_values(source: ImageSource, spec: ImageSpec) -> FloatArray:
    """Pixels of a picture as the vision tower takes them, float32 [1, 3, H, W].

    Raises:
        ImageError: missing, of another format, damaged or too large.
        MissingPackageError: of a format that an extra reads.
    """
    return preprocess(to_rgb(open_image(source, page_side=_page_side(spec))), spec)


def opening_bytes(source: ImageSource, spec: ImageSpec) -> int:
    """Memory that ``pixel_values`` takes at most meanwhile, known without decoding the picture.

    Raises:
        ImageError: missing, of another format, too large, or so long and narrow that it cannot be
            resized.
        MissingPackageError: of a format that an extra reads.
    """
    opened = undecoded(source, page_side=_page_side(spec))
    width, height = opened.size
    most = PIXEL_BYTES * width * height
    if spec.pad_to_square is not None:
        width = height = max(width, height)
    padded = most + PIXEL_BYTES * width * height
    if spec.resize_to is None:
        return max(opened.decoding_bytes, padded)
    resized_width, resized_height = _resized_size((width, height), spec, spec.resize_to)
    # Pillow resizes all rows to their new width first.
    resized = PIXEL_BYTES * (width * height + resized_width * (height + resized_height))
    return max(opened.decoding_bytes, padded, resized)


def as_seen(pixels: FloatArray, spec: ImageSpec) -> Image.Image:
    """The RGB picture that ``pixel_values``, float32 [1, 3, H, W], are of: what the model sees."""
    scaled = pixels[0].transpose(1, 2, 0) * np.array(spec.std, np.float32) + np.array(spec.mean, np.float32)
    return Image.fromarray((scaled / spec.rescale_factor).round().clip(0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it, RGB: turned upright, what is transparent on white, 16 bits as 8.

    Raises:
        ImageError: damaged, or its numbers do not tell what is black and what is white (modes "I", "I;16" and
            "F" of PIL images).
    """
    is_from_file = image.format is not None  # then 16 bits are 16 bits
    with refusing_damage("the picture"):
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


def _page_side(spec: ImageSpec) -> int:
    """Pixels of the shorter side of a PDF's page, as the model needs it."""
    if spec.resize_to is None:
        return max(spec.size.width, spec.size.height)
    return PAGE_FINENESS * max(spec.resize_to.width, spec.resize_to.height)


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
        raise too_many_pixels("the picture, padded to a square,")
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
