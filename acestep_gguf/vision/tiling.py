"""How a picture becomes crops of the tower's size, and what the features of its crops are to the decoder.

Each way is a class with a file of its own. The number of tokens follows from the size of a picture alone, in
integers, so it is known before anything is loaded.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import (
    AnySize,
    ClosestAspectTiles,
    ImageSpec,
    LongestEdgeTiles,
    PinpointTiles,
    Quarters,
)
from acestep_gguf.vision.any_size import WholeOfAnySize
from acestep_gguf.vision.blocks import Block, rows_of_blocks
from acestep_gguf.vision.closest_aspect import ClosestAspect
from acestep_gguf.vision.longest_edge import LongestEdge
from acestep_gguf.vision.pinpoints import Pinpoints
from acestep_gguf.vision.quartered import Quartered
from acestep_gguf.vision.whole_picture import WholePicture

FloatArray = npt.NDArray[np.float32]


class Tiling(Protocol):
    """A way to cut pictures up.

    ``size`` is the width and height of a picture. All methods that take it, and ``crops``, raise ImageError
    for pictures that are so long and narrow that they cannot be cut up.
    """

    whole_is_first: bool  # of several crops; it comes last otherwise

    def n_columns(self, size: tuple[int, int], /) -> int:
        """Tiles of a picture that lie beside one another."""

    def n_crops(self, size: tuple[int, int], /) -> int:
        """How many crops a picture becomes."""

    def blocks(self, size: tuple[int, int], /) -> tuple[Block, ...]:
        """What the rows of a picture's embeds are, in their order."""

    def marks(self, size: tuple[int, int], /) -> tuple[tuple[int, ...], ...]:
        """Token ids before each block and behind the last one; empty if there are none between them."""

    def working_pixels(self, size: tuple[int, int], /) -> int:
        """Pixels that are in memory at most while a picture, its own among them, becomes crops."""

    def crops(self, image: Image.Image) -> list[Image.Image]:
        """Crops of an RGB picture, each of a size that the tower takes."""

    def grids(self, features: FloatArray, size: tuple[int, int], /) -> Sequence[FloatArray]:
        """Features of all crops, [n_crops, n_image_tokens, n], as grids of ``blocks``, [rows, columns, n]."""

    def most(self) -> tuple[int, int]:
        """The most crops that any picture has, and the most tokens, its marks among them."""

    def most_marks(self) -> int:
        """The most tokens that any picture has between its blocks."""


def cuts_only_one(spec: ImageSpec) -> bool:
    """Whether pictures are cut up only where there is but one in the prompt."""
    return isinstance(spec.tiles, PinpointTiles) and spec.tiles.square_fill is not None


def tiling_of(spec: ImageSpec, *, max_tiles: int | None = None, n_pictures: int = 1) -> Tiling:
    """How pictures become crops.

    Args:
        spec: what the bundle says of pictures.
        max_tiles: tiles at most, so that a picture costs less: 1 for the whole picture as one crop. None for
            as many as the model was made for.
        n_pictures: how many there are in the prompt: some models cut up a picture only if it is alone.
    """
    match spec.tiles:
        case None:
            return WholePicture(spec)
        case ClosestAspectTiles() as tiles:
            return ClosestAspect(spec, tiles, max_tiles)
        case PinpointTiles() as tiles:
            return Pinpoints(spec, tiles, max_tiles, is_alone=n_pictures == 1)
        case LongestEdgeTiles() as tiles:
            return LongestEdge(spec, tiles, max_tiles)
        case AnySize() as tiles:
            return WholeOfAnySize(spec, tiles)
        case Quarters() as tiles:
            return Quartered(spec, tiles, max_tiles)


def n_positions(tiling: Tiling, size: tuple[int, int], *, image_tokens: int | None = None) -> int:
    """Positions in the context that a picture of ``size`` takes, with ``image_tokens`` for its patches."""
    return sum(rows_of_blocks(tiling.blocks(size), image_tokens)) + sum(map(len, tiling.marks(size)))
