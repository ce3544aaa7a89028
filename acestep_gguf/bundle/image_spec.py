"""How a picture becomes ``pixel_values``, and how many tokens: a part of bundle.json."""

from dataclasses import dataclass
from itertools import chain
from math import isqrt
from typing import Final, Literal

import msgspec

# Bounds far above every known model: they keep sizes computed from a hostile bundle harmless.
MAX_TILES = 256
MAX_GRIDS = 1024
MAX_LENGTH = 4096  # as in transformers, of both sides
MAX_MARK = 16  # tokens

# Token ids.
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if not (0 < self.height <= 16384 and 0 < self.width <= 16384):
            raise ValueError(f"{self.height} x {self.width} is not a usable picture size")


class ClosestAspectTiles(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="closest_aspect"):
    """A picture is stretched over the grid of tiles whose aspect is closest to its own, as for InternVL.

    With more than one tile, the whole picture, scaled to one, comes last. See vision/closest_aspect.py.
    """

    min_tiles: int
    max_tiles: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles <= MAX_TILES:
            raise ValueError(f"{self.min_tiles} to {self.max_tiles} tiles are not usable")


class PinpointTiles(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pinpoints"):
    """A picture is fitted into one of ``grids``, rows and columns of tiles, as for LLaVA-NeXT and OneVision.

    The whole picture, scaled to one tile, comes first. Tokens of the tiles that lie beside the picture are
    left out, and each row of the others ends with the embedding ``image_newline``. If there are by far more
    of them than ``max_crops`` tiles have, they are shrunk to so many. With ``square_fill``, each of several
    pictures is padded to a square of this color instead, and is one tile. See vision/pinpoints.py.
    """

    grids: tuple[tuple[int, int], ...]
    max_crops: int | None = None
    square_fill: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.grids) <= MAX_GRIDS:
            raise ValueError(f"there are {len(self.grids)} grids of tiles")
        if not all(rows > 0 and columns > 0 and rows * columns <= MAX_TILES for rows, columns in self.grids):
            raise ValueError("a grid of tiles is empty or too large")
        if self.max_crops is not None and not 1 <= self.max_crops <= MAX_TILES:
            raise ValueError(f"max_crops is {self.max_crops}")
        if self.square_fill is not None and not all(0 <= channel <= 255 for channel in self.square_fill):
            raise ValueError(f"{self.square_fill} is not a color")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileMarks:
    """Token ids around the tiles of a picture, as for SmolVLM.

    ``around`` stands before each and behind the last; then ``whole`` before the whole picture, and before
    another one that of its row and column in ``tiles``. ``line`` ends each row but the last, which
    ``blank_line`` ends.
    """

    around: int
    whole: int
    tiles: tuple[TokenIds, ...]
    line: TokenIds
    blank_line: TokenIds

    def __post_init__(self) -> None:
        if not all(0 <= token_id < 2**31 for token_id in (*self.control_ids, *self.line, *self.blank_line)):
            raise ValueError("a token around tiles is none")
        if not (0 < len(self.line) <= MAX_MARK and 0 < len(self.blank_line) <= MAX_MARK):
            raise ValueError("the ends of rows of tiles have no tokens, or too many")

    @property
    def control_ids(self) -> TokenIds:
        """Those that stand for no text."""
        return self.around, self.whole, *chain.from_iterable(self.tiles)


class LongestEdgeTiles(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="longest_edge"):
    """A picture's longer side becomes ``longest_edge`` pixels, then both whole tiles, as for SmolVLM.

    With more than one tile, the whole picture, scaled to one, comes last. ``marks`` are the tokens between
    them. See vision/longest_edge.py.
    """

    longest_edge: int
    marks: TileMarks

    def __post_init__(self) -> None:
        # An odd one could make the shorter side, which is rounded up to an even one, the longer.
        if not 2 <= self.longest_edge <= MAX_LENGTH or self.longest_edge % 2:
            raise ValueError(f"a longer side of {self.longest_edge} pixels is not usable")

    def check(self, side: int) -> None:
        """Check that there are marks for all tiles of ``side`` pixels; ValueError says that there are not."""
        n_side = -(-self.longest_edge // side)
        has_marks = len(self.marks.tiles) >= n_side and all(len(row) >= n_side for row in self.marks.tiles)
        if n_side**2 > MAX_TILES or not has_marks:
            raise ValueError(f"there are no tokens for {n_side} rows and columns of tiles")


class AnySize(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="any_size"):
    """A picture keeps its size, as for Pixtral, but for what makes it fit, and for sides of whole patches.

    ``step`` is the side of a patch. The embedding ``image_newline`` ends each row but the last. See
    vision/any_size.py.
    """

    step: int

    def __post_init__(self) -> None:
        if not 1 <= self.step <= 1024:
            raise ValueError(f"patches of {self.step} pixels are not usable")


class Quarters(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="quarters"):
    """A picture's four quarters, if ``splits``, then the whole, each of a size of its own, as for IDEFICS-2.

    No side of them is shorter than ``shortest_edge``, or longer than the tower's pictures. ``step`` is a
    patch's side, and the token ``between`` stands between two of them. See vision/quartered.py.
    """

    splits: bool
    shortest_edge: int
    step: int
    between: int

    def __post_init__(self) -> None:
        if not 1 <= self.step <= 1024:
            raise ValueError(f"patches of {self.step} pixels are not usable")
        if not 0 <= self.between < 2**31:
            raise ValueError("the token between quarters is none")

    def check(self, longest_edge: int) -> None:
        """Check that the sides of all crops have patches; ValueError says that they do not."""
        if not self.step <= self.shortest_edge <= longest_edge <= MAX_LENGTH:
            raise ValueError(f"sides of {self.shortest_edge} to {longest_edge} pixels are not usable")


Tiles = ClosestAspectTiles | PinpointTiles | LongestEdgeTiles | AnySize | Quarters
# Those whose crops have sizes of their own.
SIZES_OF_THEIR_OWN: Final = (AnySize, Quarters)


def control_ids(tiles: Tiles | None) -> TokenIds:
    """Tokens between the crops of a picture that stand for no text."""
    match tiles:
        case LongestEdgeTiles(marks=marks):
            return marks.control_ids
        case Quarters(between=between):
            return (between,)
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """How a picture becomes ``pixel_values``, in the order of the fields, and what the tower makes of them.

    ``resize`` "shortest_edge" scales the shorter edge to ``resize_to.height`` and keeps the aspect; "exact"
    scales to ``resize_to``; "longest_edge" keeps the aspect, too, scales to what fits into ``resize_to`` and
    fills the rest with the color ``fill``. Pixels are then ``(pixel * rescale_factor - mean) / std`` per RGB
    channel. With ``tiles``, a picture becomes several crops of ``size``, of ``n_image_tokens`` each, or crops
    of any size, of which these are the most.
    """

    pad_to_square: tuple[int, int, int] | None
    resize: Literal["shortest_edge", "exact", "longest_edge"] | None
    resize_to: Size | None
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
    center_crop: Size | None
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: Size
    n_image_tokens: int
    n_embd: int
    fill: tuple[int, int, int] | None = None
    tiles: Tiles | None = None

    def __post_init__(self) -> None:
        if self.tiles is not None and (self.resize != "exact" or self.resize_to != self.size):
            raise ValueError("the tiles of a picture are stretched to the size of one")
        has_grid = self.tiles is not None and not isinstance(self.tiles, Quarters)
        if has_grid and isqrt(self.n_image_tokens) ** 2 != self.n_image_tokens:
            raise ValueError(f"the {self.n_image_tokens} tokens of a tile do not form a square")
        if isinstance(self.tiles, LongestEdgeTiles | Quarters):
            self.tiles.check(self.size.height)
        if (
            isinstance(self.tiles, AnySize)
            and self.size.height != isqrt(self.n_image_tokens) * self.tiles.step
        ):
            raise ValueError("the largest picture has not as many patches as tokens")
        if (self.resize is None) != (self.resize_to is None):
            raise ValueError("resize and resize_to go together")
        if (self.resize == "longest_edge") != (self.fill is not None):
            raise ValueError("longest_edge and fill go together")
        for color in filter(None, (self.pad_to_square, self.fill)):
            if not all(0 <= channel <= 255 for channel in color):
                raise ValueError(f"{color} is not a color")
        if not 0 < self.rescale_factor < 1e6:
            raise ValueError("rescale_factor must lie between 0 and a million")
        if not all(
            abs(mean) < 1e6 and 1e-6 < std < 1e6 for mean, std in zip(self.mean, self.std, strict=True)
        ):
            raise ValueError("mean and std must be finite and usable, std positive")
        if self.n_image_tokens <= 0 or self.n_embd <= 0:
            raise ValueError("n_image_tokens and n_embd must be positive")
