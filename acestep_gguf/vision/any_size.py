"""Pixtral's pictures of any size: the numbers of transformers' ``PixtralImageProcessorPil``, bit for bit."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import AnySize, ImageSpec
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import check_size, resized, resizing_pixels

FloatArray = npt.NDArray[np.float32]


class WholeOfAnySize:
    """One crop of a size of its own; see ``Tiling``. Nothing makes it fewer tiles than one."""

    whole_is_first = True

    def __init__(self, spec: ImageSpec, tiles: AnySize) -> None:
        self._spec = spec
        self._step = tiles.step

    def n_columns(self, _: tuple[int, int]) -> int:
        return 1

    def n_crops(self, _: tuple[int, int]) -> int:
        return 1

    def blocks(self, size: tuple[int, int]) -> tuple[Block, ...]:
        rows, columns = self._grid(size)
        before = (Block(rows - 1, columns, has_newlines=True),) if rows > 1 else ()
        return *before, Block(1, columns)

    def marks(self, _: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        return ()

    def working_pixels(self, size: tuple[int, int]) -> int:
        return resizing_pixels(size, self._fitted(size))

    def crops(self, image: Image.Image) -> list[Image.Image]:
        return [resized(image, self._fitted(image.size), self._spec)]

    def grids(self, features: FloatArray, size: tuple[int, int]) -> Sequence[FloatArray]:
        grid = features.reshape(*self._grid(size), -1)
        return [grid[:-1], grid[-1:]] if len(grid) > 1 else [grid]

    def most(self) -> tuple[int, int]:
        n_side = self._spec.size.height // self._step
        return 1, n_side * (n_side + 1) - 1

    def most_marks(self) -> int:
        return 0

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches."""
        width, height = self._fitted(size)
        return height // self._step, width // self._step

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture for the tower, as in ``get_resize_output_image_size``."""
        width, height = size
        ratio = max(height / self._spec.size.height, width / self._spec.size.width)
        if ratio > 1:
            width, height = math.floor(width / ratio), math.floor(height / ratio)
        fitted = -(-width // self._step) * self._step, -(-height // self._step) * self._step
        check_size(size, fitted)
        return fitted
