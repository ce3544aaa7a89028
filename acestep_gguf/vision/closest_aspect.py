"""InternVL's tiles: the numbers of transformers' ``GotOcr2ImageProcessorPil``, bit for bit."""

from collections.abc import Sequence
from math import isqrt

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import ClosestAspectTiles, ImageSpec
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.resizing import resized, resizing_pixels, tiles_of

FloatArray = npt.NDArray[np.float32]


class ClosestAspect:
    """A picture is stretched over the grid of tiles whose aspect is closest to its own; see ``Tiling``.

    With more than one tile, the whole picture comes last, scaled to one.
    """

    whole_is_first = False

    def __init__(self, spec: ImageSpec, tiles: ClosestAspectTiles, max_tiles: int | None) -> None:
        most = tiles.max_tiles if max_tiles is None else min(max_tiles, tiles.max_tiles)
        least = min(tiles.min_tiles, most)
        self._spec = spec
        self._side = isqrt(spec.n_image_tokens)
        self._most = most
        # Smaller ones first, and of as many tiles the narrower.
        self._grids = sorted(
            (
                (rows, columns)
                for columns in range(1, most + 1)
                for rows in range(1, most // columns + 1)
                if rows * columns >= least
            ),
            key=lambda grid: grid[0] * grid[1],
        )

    def n_columns(self, size: tuple[int, int]) -> int:
        return self._grid(size)[1]

    def n_crops(self, size: tuple[int, int]) -> int:
        rows, columns = self._grid(size)
        n_tiles = rows * columns
        return n_tiles + (n_tiles > 1)

    def blocks(self, size: tuple[int, int]) -> tuple[Block, ...]:
        return (Block(self._side, self._side),) * self.n_crops(size)

    def marks(self, _: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        return ()

    def working_pixels(self, size: tuple[int, int]) -> int:
        return resizing_pixels(size, self._stretched(size))

    def crops(self, image: Image.Image) -> list[Image.Image]:
        stretched = resized(image, self._stretched(image.size), self._spec)
        tiles = tiles_of(stretched, self._grid(image.size), self._spec.size)
        if len(tiles) == 1:
            return tiles
        whole = (self._spec.size.width, self._spec.size.height)
        return [*tiles, resized(image, whole, self._spec)]

    def grids(self, features: FloatArray, _: tuple[int, int]) -> Sequence[FloatArray]:
        return list(features.reshape(len(features), self._side, self._side, -1))

    def most(self) -> tuple[int, int]:
        n_crops = self._most + (self._most > 1)
        return n_crops, n_crops * self._spec.n_image_tokens

    def most_marks(self) -> int:
        return 0

    def _stretched(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the tiles of a picture together."""
        rows, columns = self._grid(size)
        return columns * self._spec.size.width, rows * self._spec.size.height

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture, as in ``get_optimal_tiled_canvas``.

        Of grids that are equally close the last one is taken, as long as its tiles have less than twice the
        picture's pixels.
        """
        width, height = size
        best, best_distance = (1, 1), float("inf")
        for rows, columns in self._grids:
            distance = abs(width / height - columns / rows)
            pixels = self._spec.size.width * self._spec.size.height * rows * columns
            if distance < best_distance or (distance == best_distance and width * height > 0.5 * pixels):
                best, best_distance = (rows, columns), distance
        return best
