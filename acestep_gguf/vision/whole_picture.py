"""The whole picture is one crop: CLIP's, SigLIP's and LLaVA's processors."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import (
    center_cropped,
    centered,
    check_size,
    padded_to_square,
    resized,
    resizing_pixels,
)

FloatArray = npt.NDArray[np.float32]


class WholePicture:
    """One crop a picture; see ``Tiling``."""

    whole_is_first = True

    def __init__(self, spec: ImageSpec) -> None:
        self._spec = spec

    def n_columns(self, _: tuple[int, int]) -> int:
        return 1

    def n_crops(self, _: tuple[int, int]) -> int:
        return 1

    def blocks(self, _: tuple[int, int]) -> tuple[Block, ...]:
        """One row of tokens: those that belong to no patch may be among them."""
        return (Block(1, self._spec.n_image_tokens),)

    def marks(self, _: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        return ()

    def working_pixels(self, size: tuple[int, int]) -> int:
        most = size[0] * size[1]
        if self._spec.pad_to_square is not None:
            side = max(size)
            most, size = most + side * side, (side, side)
        if self._spec.resize_to is not None:
            new = _resized_size(size, self._spec, self._spec.resize_to)
            most = max(most, resizing_pixels(size, new))
        return most

    def crops(self, image: Image.Image) -> list[Image.Image]:
        spec = self._spec
        if spec.pad_to_square is not None:
            image = padded_to_square(image, spec.pad_to_square)
        if spec.resize_to is not None:
            image = _resize(image, spec, spec.resize_to)
        if spec.center_crop is not None:
            image = center_cropped(image, spec.center_crop)
        if image.size != (spec.size.width, spec.size.height):
            got, wanted = f"{image.width} x {image.height}", f"{spec.size.width} x {spec.size.height}"
            raise ImageError(f"the picture is {got} pixels, this model takes {wanted}: scale it first.")
        return [image]

    def grids(self, features: FloatArray, _: tuple[int, int]) -> Sequence[FloatArray]:
        return [features]

    def most(self) -> tuple[int, int]:
        return 1, self._spec.n_image_tokens

    def most_marks(self) -> int:
        return 0


def _resize(image: Image.Image, spec: ImageSpec, to: Size) -> Image.Image:
    scaled = resized(image, _resized_size(image.size, spec, to), spec)
    return scaled if spec.fill is None else centered(scaled, (to.width, to.height), spec.fill)


def _resized_size(size: tuple[int, int], spec: ImageSpec, to: Size) -> tuple[int, int]:
    """Width and height that a picture of ``size`` is resized to."""
    width, height = to.width, to.height
    if spec.resize == "shortest_edge":
        short, long = sorted(size)
        scaled = int(to.height * long / short)
        width, height = (to.height, scaled) if size[0] <= size[1] else (scaled, to.height)
    elif spec.resize == "longest_edge":
        width, height = _fitting_size(size, to)
    check_size(size, (width, height))
    return width, height


def _fitting_size(size: tuple[int, int], to: Size) -> tuple[int, int]:
    """Width and height of ``size`` scaled to fit into ``to``: libmtmd's, which computes in float32."""
    width, height = np.float32(size[0]), np.float32(size[1])
    scale = min(np.float32(to.width) / width, np.float32(to.height) / height)
    return min(math.ceil(width * scale), to.width), min(math.ceil(height * scale), to.height)
