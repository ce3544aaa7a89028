"""Steps on the way from a picture to a crop, as Pillow and transformers' processors do them."""

from typing import Final

from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.image_file import MAX_PIXELS, too_many_pixels

Color = tuple[int, int, int]

_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def resized(image: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    """The picture in another width and height.

    Raises:
        ImageError: that would be too many pixels.
    """
    check_size(image.size, size)
    return image.resize(size, _RESAMPLE[spec.resample])


def resizing_pixels(size: tuple[int, int], new: tuple[int, int]) -> int:
    """Pixels in memory while a picture is resized: Pillow resizes all rows to their new width first."""
    return size[0] * size[1] + new[0] * (size[1] + new[1])


def check_size(size: tuple[int, int], new: tuple[int, int]) -> None:
    """Refuse what resizing a picture of ``size`` would make too large, or nothing at all.

    Raises:
        ImageError: it would.
    """
    if not 0 < new[0] * new[1] <= MAX_PIXELS:
        raise ImageError(f"a picture of {size[0]} x {size[1]} is too long and narrow: crop it first.")


def centered(image: Image.Image, size: tuple[int, int], color: Color) -> Image.Image:
    """The picture in the middle of a larger one of one color; halves are rounded down."""
    larger = Image.new("RGB", size, color)
    larger.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return larger


def padded_to_square(image: Image.Image, color: Color) -> Image.Image:
    """The picture in the middle of the smallest square around it.

    Raises:
        ImageError: that would be too many pixels.
    """
    side = max(image.size)
    if side * side > MAX_PIXELS:
        raise too_many_pixels("the picture, padded to a square,")
    return centered(image, (side, side), color)


def center_cropped(image: Image.Image, size: Size) -> Image.Image:
    """The picture cut to ``size`` around its middle, with zeros where it is smaller.

    Halves are rounded as in transformers.image_transforms.center_crop: down for a cut, up for padding.
    """
    left, top = (image.width - size.width) // 2, (image.height - size.height) // 2
    return image.crop((left, top, left + size.width, top + size.height))


def tiles_of(image: Image.Image, grid: tuple[int, int], size: Size) -> list[Image.Image]:
    """A picture cut into rows and columns of tiles, row by row."""
    rows, columns = grid
    return [
        image.crop(
            (
                column * size.width,
                row * size.height,
                (column + 1) * size.width,
                (row + 1) * size.height,
            )
        )
        for row in range(rows)
        for column in range(columns)
    ]
