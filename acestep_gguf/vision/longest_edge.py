"""SmolVLM's and Idefics3's tiles: the numbers of transformers' ``Idefics3ImageProcessorPil``, bit for bit."""

from collections.abc import Iterator, Sequence
from math import isqrt

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, LongestEdgeTiles
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import resized, resizing_pixels, tiles_of

FloatArray = npt.NDArray[np.float32]


class LongestEdge:
    """A picture's longer side gets a fixed length, then both sides whole tiles; see ``Tiling``.

    With more than one tile, the whole picture comes last, scaled to one. Tokens stand around each.
    """

    whole_is_first = False

    def __init__(self, spec: ImageSpec, tiles: LongestEdgeTiles, max_tiles: int | None) -> None:
        self._spec = spec
        self._marks = tiles.marks
        self._side = spec.size.height
        self._n_side = isqrt(spec.n_image_tokens)
        self._max_tiles = max_tiles
        # The model's own length first; where that makes too many tiles, one tile less at a time.
        shorter = range(self._side * ((tiles.longest_edge - 1) // self._side), 0, -self._side)
        self._lengths: tuple[int, ...] = (tiles.longest_edge, *(shorter if max_tiles is not None else ()))

    def n_columns(self, size: tuple[int, int]) -> int:
        return self._grid(size)[1]

    def n_crops(self, size: tuple[int, int]) -> int:
        rows, columns = self._grid(size)
        n_tiles = rows * columns
        return n_tiles + (n_tiles > 1)

    def blocks(self, size: tuple[int, int]) -> tuple[Block, ...]:
        return (Block(self._n_side, self._n_side),) * self.n_crops(size)

    def marks(self, size: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        return self._marks_of(*self._grid(size))

    def working_pixels(self, size: tuple[int, int]) -> int:
        fitted, stretched = self._fitted(size, self._length(size)), self._stretched(size)
        beside = size[0] * size[1] + fitted[0] * fitted[1]
        return max(resizing_pixels(size, fitted), beside + resizing_pixels(stretched, stretched))

    def crops(self, image: Image.Image) -> list[Image.Image]:
        fitted = resized(image, self._fitted(image.size, self._length(image.size)), self._spec)
        stretched = resized(fitted, self._stretched(image.size), self._spec)
        tiles = tiles_of(stretched, self._grid(image.size), self._spec.size)
        if len(tiles) == 1:
            return tiles
        return [*tiles, resized(stretched, (self._side, self._side), self._spec)]

    def grids(self, features: FloatArray, _: tuple[int, int]) -> Sequence[FloatArray]:
        return list(features.reshape(len(features), self._n_side, self._n_side, -1))

    def most(self) -> tuple[int, int]:
        n_crops = max(rows * columns + (rows * columns > 1) for rows, columns in self._all_grids())
        return n_crops, n_crops * self._spec.n_image_tokens + self.most_marks()

    def most_marks(self) -> int:
        return max(sum(len(mark) for mark in self._marks_of(*grid)) for grid in self._all_grids())

    def _all_grids(self) -> Iterator[tuple[int, int]]:
        sides = range(1, -(-self._lengths[0] // self._side) + 1)
        most = self._max_tiles or len(sides) ** 2
        return ((rows, columns) for rows in sides for columns in sides if rows * columns <= most)

    def _marks_of(self, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        """As in ``Idefics3Processor.replace_image_token``."""
        marks = self._marks
        if rows * columns == 1:
            return (marks.around, marks.whole), (marks.around,)
        tiles = [
            (*(marks.line if row and not column else ()), marks.around, marks.tiles[row][column])
            for row in range(rows)
            for column in range(columns)
        ]
        return *tiles, (*marks.blank_line, marks.around, marks.whole), (marks.around,)

    def _length(self, size: tuple[int, int]) -> int:
        """What the longer side becomes: the longest that makes no more than ``max_tiles``."""
        for length in self._lengths:
            width, height = self._whole_tiles(self._fitted(size, length))
            if self._max_tiles is None or width * height <= self._max_tiles * self._side**2:
                break
        return length

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture."""
        width, height = self._stretched(size)
        return height // self._side, width // self._side

    def _stretched(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the tiles of a picture together."""
        return self._whole_tiles(self._fitted(size, self._length(size)))

    @staticmethod
    def _fitted(size: tuple[int, int], length: int) -> tuple[int, int]:
        """Width and height with a longer side of ``length``: ``_resize_output_size_rescale_to_max_len``."""
        aspect = size[0] / size[1]
        if aspect >= 1:
            shorter = int(length / aspect)
            return length, max(1, shorter + shorter % 2)
        shorter = int(length * aspect)
        return max(1, shorter + shorter % 2), length

    def _whole_tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the tiles over a picture, as in ``resize_for_vision_encoder``."""
        width, height = size
        aspect = width / height
        if width >= height:
            width = self._rounded_up(width)
            return width, self._rounded_up(int(width / aspect))
        height = self._rounded_up(height)
        return self._rounded_up(int(height * aspect)), height

    def _rounded_up(self, length: int) -> int:
        return -(-length // self._side) * self._side
