"""IDEFICS-2's quarters: the numbers of transformers' ``Idefics2ImageProcessorPil``, bit for bit."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, Quarters
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import check_size, resized, resizing_pixels

FloatArray = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom

N_QUARTERS = 4


class Quartered:
    """A picture's quarters, row by row, then the whole, each resized by itself; see ``Tiling``.

    With fewer than four tiles at most, the whole alone.
    """

    whole_is_first = False

    def __init__(self, spec: ImageSpec, tiles: Quarters, max_tiles: int | None) -> None:
        self._spec = spec
        self._tiles = tiles
        self._splits = tiles.splits and (max_tiles is None or max_tiles >= N_QUARTERS)
        self._n_crops = N_QUARTERS + 1 if self._splits else 1

    def n_columns(self, _: tuple[int, int]) -> int:
        return 2 if self._splits else 1

    def n_crops(self, _: tuple[int, int]) -> int:
        return self._n_crops

    def blocks(self, size: tuple[int, int]) -> tuple[Block, ...]:
        """A row of tokens for each crop: they belong to no patch."""
        self.fitted_crops(size)
        return (Block(1, self._spec.n_image_tokens),) * self._n_crops

    def marks(self, _: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        if not self._splits:
            return ()
        return ((), *((self._tiles.between,),) * N_QUARTERS, ())

    def working_pixels(self, size: tuple[int, int]) -> int:
        resizing = [resizing_pixels(_size_of(box), fitted) for box, fitted in self.fitted_crops(size)]
        return size[0] * size[1] + max(resizing)

    def crops(self, image: Image.Image) -> list[Image.Image]:
        return [resized(image.crop(box), fitted, self._spec) for box, fitted in self.fitted_crops(image.size)]

    def grids(self, features: FloatArray, _: tuple[int, int]) -> Sequence[FloatArray]:
        return list(features[:, np.newaxis])

    def most(self) -> tuple[int, int]:
        return self._n_crops, self._n_crops * self._spec.n_image_tokens + self.most_marks()

    def most_marks(self) -> int:
        return self._n_crops - 1

    def fitted_crops(self, size: tuple[int, int]) -> list[tuple[Box, tuple[int, int]]]:
        """Where each crop lies in a picture, and the width and height that it gets."""
        width, height = size
        middle, half = width // 2, height // 2
        boxes: list[Box] = [(0, 0, width, height)]
        if self._splits:
            rows, columns = ((0, half), (half, height)), ((0, middle), (middle, width))
            quarters = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
            boxes = [*quarters, *boxes]
        return [(box, self._fitted(_size_of(box))) for box in boxes]

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """As in ``get_resize_output_image_size``; what is too short is stretched, whatever the aspect."""
        check_size(size, size)  # half of one pixel is nothing
        width, height = size
        longest, aspect = self._spec.size.height, width / height
        if width >= height and width > longest:
            width, height = longest, int(longest / aspect)
        elif height > width and height > longest:
            width, height = int(longest * aspect), longest
        return max(width, self._tiles.shortest_edge), max(height, self._tiles.shortest_edge)


def _size_of(box: Box) -> tuple[int, int]:
    left, top, right, bottom = box
    return right - left, bottom - top
