"""The tiles of LLaVA-NeXT and LLaVA-OneVision: numbers of transformers' processors and models, bit for bit.

LLaVA-NeXT calls this "anyres"; the grids are its ``image_grid_pinpoints``.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, PinpointTiles
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import (
    centered,
    check_size,
    padded_to_square,
    resized,
    resizing_pixels,
    tiles_of,
)

FloatArray = npt.NDArray[np.float32]

BLACK = (0, 0, 0)
# Tokens of tiles are shrunk if there are more than 1.1² times as many as may be.
TOLERANCE = 1.1


class Pinpoints:
    """A picture is fitted into a grid of tiles, and padded; see ``Tiling``.

    The whole picture comes first, stretched to one tile. Where there are no other tiles, ``image_newline``
    ends it.
    """

    whole_is_first = True

    def __init__(
        self, spec: ImageSpec, tiles: PinpointTiles, max_tiles: int | None, *, is_alone: bool
    ) -> None:
        is_square = tiles.square_fill is not None and not is_alone
        self._spec = spec
        self._square_fill = tiles.square_fill if is_square else None
        self._max_crops = tiles.max_crops
        self._side = math.isqrt(spec.n_image_tokens)
        most = max_tiles or max(rows * columns for rows, columns in tiles.grids)
        # One tile is the whole picture, which is there anyway.
        is_cut = not is_square and most > 1
        self._grids = [grid for grid in tiles.grids if grid[0] * grid[1] <= most] if is_cut else []

    def n_columns(self, size: tuple[int, int]) -> int:
        return max(1, self._grid(size)[1])

    def n_crops(self, size: tuple[int, int]) -> int:
        rows, columns = self._grid(size)
        return 1 + rows * columns

    def blocks(self, size: tuple[int, int]) -> tuple[Block, ...]:
        whole = Block(self._side, self._side)
        if not self._grids:
            return whole, Block(1, 0, has_newlines=True)
        rows, columns = self._shrunk(*self._seen(self._grid(size), size))
        return whole, Block(rows, columns, has_newlines=True)

    def marks(self, _: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        return ()

    def working_pixels(self, size: tuple[int, int]) -> int:
        whole = (self._spec.size.width, self._spec.size.height)
        if self._square_fill is not None:
            side = max(size)
            return max(size[0] * size[1] + side * side, resizing_pixels((side, side), whole))
        most = resizing_pixels(size, whole)
        if self._grids:
            width, height = self._canvas(size)
            most = max(most, resizing_pixels(size, self._fitted(size)) + width * height)
        return most

    def crops(self, image: Image.Image) -> list[Image.Image]:
        if self._square_fill is not None:
            image = padded_to_square(image, self._square_fill)
        whole = resized(image, (self._spec.size.width, self._spec.size.height), self._spec)
        if not self._grids:
            return [whole]
        fitted = resized(image, self._fitted(image.size), self._spec)
        canvas = centered(fitted, self._canvas(image.size), BLACK)
        return [whole, *tiles_of(canvas, self._grid(image.size), self._spec.size)]

    def grids(self, features: FloatArray, size: tuple[int, int]) -> Sequence[FloatArray]:
        side, n = self._side, features.shape[2]
        whole = features[0].reshape(side, side, n)
        if not self._grids:
            return [whole, np.empty((1, 0, n), np.float32)]
        rows, columns = self._grid(size)
        tiles = features[1:].reshape(rows, columns, side, side, n).transpose(0, 2, 1, 3, 4)
        canvas = tiles.reshape(rows * side, columns * side, n)
        n_rows, n_columns = self._seen((rows, columns), size)
        top, left = (rows * side - n_rows) // 2, (columns * side - n_columns) // 2
        seen = canvas[top : top + n_rows, left : left + n_columns]
        return [whole, _shrunk_to(seen, self._shrunk(n_rows, n_columns))]

    def most(self) -> tuple[int, int]:
        if not self._grids:
            return 1, self._spec.n_image_tokens + 1
        n_crops = 1 + max(rows * columns for rows, columns in self._grids)
        most = max(
            Block(*self._shrunk(rows, columns), has_newlines=True).n_tokens
            for grid in self._grids
            for rows, columns in _all_seen(grid[0] * self._side, grid[1] * self._side)
        )
        return n_crops, self._spec.n_image_tokens + most

    def most_marks(self) -> int:
        return 0

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture, as in ``select_best_resolution``; 0 without any.

        The grid in which most of the picture's pixels are kept, and of several the smallest.
        """
        if not self._grids:
            return 0, 0
        width, height = size
        best, best_kept, least_wasted = self._grids[0], 0, math.inf
        for grid in self._grids:
            canvas_height, canvas_width = self._pixels(grid)
            scale = min(canvas_width / width, canvas_height / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = canvas_width * canvas_height - kept
            if kept > best_kept or (kept == best_kept and wasted < least_wasted):
                best, best_kept, least_wasted = grid, kept, wasted
        return best

    def _pixels(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a grid."""
        return grid[0] * self._spec.size.height, grid[1] * self._spec.size.width

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the tiles of a picture together."""
        height, width = self._pixels(self._grid(size))
        return width, height

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture in its tiles, as in ``get_patch_output_size``."""
        width, height = size
        canvas_width, canvas_height = self._canvas(size)
        scale_w, scale_h = canvas_width / width, canvas_height / height
        if scale_w < scale_h:
            fitted = canvas_width, min(math.ceil(height * scale_w), canvas_height)
        else:
            fitted = min(math.ceil(width * scale_h), canvas_width), canvas_height
        check_size(size, fitted)
        return fitted

    def _seen(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens that are not of the padding alone, as in ``unpad_image``."""
        width, height = size
        rows, columns = grid[0] * self._side, grid[1] * self._side
        if width / height > columns / rows:
            fitted = int(round(height * (columns / width), 7))
            return rows - 2 * ((rows - fitted) // 2), columns
        fitted = int(round(width * (rows / height), 7))
        return rows, columns - 2 * ((columns - fitted) // 2)

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that are left of so many, as OneVision's ``pack_image_features`` shrinks them."""
        if self._max_crops is None:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self._max_crops * self._side**2))
        if ratio <= TOLERANCE:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)


def _all_seen(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of tokens that padding can leave of so many."""
    yield from ((left, columns) for left in range(rows, 0, -2))
    yield from ((rows, left) for left in range(columns, 0, -2))


def _shrunk_to(grid: FloatArray, size: tuple[int, int]) -> FloatArray:
    """A grid [rows, columns, n] in fewer rows and columns: torch's ``interpolate(mode="bilinear")``."""
    rows, columns = grid.shape[:2]
    if size == (rows, columns):
        return grid
    down, across = _bilinear(rows, size[0]), _bilinear(columns, size[1])
    shrunk: FloatArray = np.einsum("yr,xc,rcn->yxn", down, across, grid, optimize=True).astype(np.float32)
    return shrunk


@lru_cache(maxsize=16)
def _bilinear(n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    """What each of ``n_in`` samples adds to each of ``n_out``, [n_out, n_in]; ``align_corners`` is false."""
    centers = np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0)
    first = centers.astype(int)
    share = centers - first
    weights = np.zeros((n_out, n_in), np.float32)
    np.add.at(weights, (np.arange(n_out), first), 1 - share)
    np.add.at(weights, (np.arange(n_out), np.minimum(first + 1, n_in - 1)), share)
    return weights
