"""A picture becomes ``pixel_values``: open it, see it as a person would, process it as the checkpoint says.

The numbers are those of transformers' ``CLIPImageProcessorPil`` and ``LlavaImageProcessorPil``, bit for bit.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.image_file import (
    PIXEL_BYTES,
    ImageSource,
    open_image,
    picture_name,
    refusing_damage,
    undecoded,
)
from acestep_gguf.vision.tiling import Tiling, tiling_of

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

COLORS: Final = 3
WHITE: Final = (255, 255, 255, 255)
TILE: Final = 512  # side of what is made RGB at a time, since some ways to it take several copies
# A PDF's page is rendered so much finer than the model sees it: resizing evens out what rendering cuts off.
PAGE_FINENESS: Final = 2
GAP: Final = 4  # pixels between tiles that are shown


def pixel_values(source: ImageSource, spec: ImageSpec) -> list[FloatArray]:
    """Pixels of all crops of a picture as the vision tower takes them, float32 [1, 3, H, W] each.

    Raises:
        ImageError: missing, of another format, damaged or too large.
        MissingPackageError: of a format that an extra reads.
    """
    return [normalized(crop, spec) for crop in crops_of(open_rgb(source, spec), tiling_of(spec))]


def open_rgb(source: ImageSource, spec: ImageSpec) -> Image.Image:
    """The picture as a person sees it; errors are those of ``pixel_values``."""
    return to_rgb(open_image(source, page_side=_page_side(spec)), picture_name(source))


def crops_of(image: Image.Image, tiling: Tiling) -> list[UInt8Array]:
    """Crops of an RGB picture, uint8 [H, W, 3] each.

    Raises:
        ImageError: so long and narrow that it cannot be resized.
    """
    return [np.asarray(crop, np.uint8) for crop in tiling.crops(image)]


def normalized(crop: UInt8Array, spec: ImageSpec) -> FloatArray:
    """A crop, uint8 [H, W, 3], as ``pixel_values``, float32 [1, 3, H, W]."""
    # transformers rescales in float64 and normalizes in float32.
    scaled = (crop.astype(np.float64) * spec.rescale_factor).astype(np.float32)
    values = (scaled - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[np.newaxis])


def opening_bytes(source: ImageSource, spec: ImageSpec, tiling: Tiling | None = None) -> int:
    """Memory that opening a picture takes at most meanwhile, known without decoding it.

    ``tiling`` is by default that of ``spec``.

    Raises:
        ImageError: missing, of another format, too large, or so long and narrow that it cannot be
            resized.
        MissingPackageError: of a format that an extra reads.
    """
    opened = undecoded(source, page_side=_page_side(spec))
    tiling = tiling or tiling_of(spec)
    working = PIXEL_BYTES * tiling.working_pixels(opened.upright_size)
    crops = tiling.n_crops(opened.upright_size) * COLORS * spec.size.height * spec.size.width
    return max(opened.decoding_bytes, working + 2 * crops)  # each, and all of them


def picture_size(source: ImageSource, spec: ImageSpec) -> tuple[int, int]:
    """Width and height of a picture as it will be seen, without decoding it; errors as opening_bytes."""
    return undecoded(source, page_side=_page_side(spec)).upright_size


def as_seen(crops: Sequence[UInt8Array], size: tuple[int, int], tiling: Tiling) -> Image.Image:
    """What the model sees of a picture of ``size``, RGB: its tiles as they lie, with gaps, then the whole.

    ``crops`` are uint8 [H, W, 3] each.
    """
    tiles = [*crops[1:], crops[0]] if tiling.whole_is_first else [*crops]
    columns = tiling.n_columns(size)
    height, width = (max(crop.shape[axis] for crop in crops) for axis in (0, 1))
    rows = -(-len(tiles) // columns)
    seen = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), WHITE[:3])
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        seen.paste(Image.fromarray(tile), (column * (width + GAP), row * (height + GAP)))
    return seen


def to_rgb(image: Image.Image, name: str = "a picture") -> Image.Image:
    """The picture as a person sees it, RGB: turned upright, what is transparent on white, 16 bits as 8.

    ``name`` is what errors call it.

    Raises:
        ImageError: damaged, or its numbers do not tell what is black and what is white (modes "I", "I;16" and
            "F" of PIL images).
    """
    is_from_file = image.format is not None  # then 16 bits are 16 bits
    with refusing_damage("the picture"):
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise _no_known_range(name, "floating-point numbers")
        if image.mode.startswith("I"):
            _check_range(image, is_from_file, name)
        if image.mode == "RGB" and not image.has_transparency_data:
            return image
        rgb = Image.new("RGB", image.size)
        for corner, tile in _tiles(image):
            rgb.paste(_tile_to_rgb(tile), corner)
        return rgb


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


def _check_range(image: Image.Image, is_from_file: bool, name: str) -> None:
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
        raise _no_known_range(name, f"whole numbers from {low} to {high}")
    if image.mode != "I" and is_8_bits and high and not is_from_file:
        raise _no_known_range(name, f"16-bit numbers up to {high}")


def _gray_of_8_bits(image: Image.Image) -> Image.Image:
    """Grayscale of mode "I" or "I;16" as "L": of 16 bits the high byte, where convert() would clip at 255."""
    values = np.asarray(image)  # int32 or uint16
    gray = (values if image.mode == "I" else values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _no_known_range(name: str, numbers: str) -> ImageError:
    return ImageError(
        f"{name} of {numbers} does not tell which is white: convert it to 8 bits ('L' or 'RGB') first."
    )
