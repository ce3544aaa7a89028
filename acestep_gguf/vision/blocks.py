"""The rows of a picture's embeds, as the grids of tokens that they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """A grid of tokens, over one crop or over several that lie beside one another.

    With ``has_newlines``, the embedding ``image_newline`` ends each row.
    """

    rows: int
    columns: int
    has_newlines: bool = False

    @property
    def n_patches(self) -> int:
        """Tokens of the grid."""
        return self.rows * self.columns

    @property
    def n_tokens(self) -> int:
        """Tokens of the grid, and those that end its rows."""
        return self.n_patches + self.rows * self.has_newlines


def n_tokens(blocks: Sequence[Block]) -> int:
    """Tokens of a picture."""
    return sum(block.n_tokens for block in blocks)


def rows_of_blocks(blocks: Sequence[Block], n_kept: int | None) -> list[int]:
    """Rows of each block if ``n_kept`` tokens are to be kept at most: its share, without the ends of rows.

    None keeps all.
    """
    n_patches = sum(block.n_patches for block in blocks)
    if n_kept is None or n_kept >= n_tokens(blocks):
        return [block.n_tokens for block in blocks]
    n_kept = min(n_kept, n_patches)
    ends = accumulate((block.n_patches for block in blocks), initial=0)
    return [n_kept * end // n_patches - n_kept * start // n_patches for start, end in pairwise(ends)]


def packed(grids: Sequence[FloatArray], blocks: Sequence[Block], newline: FloatArray | None) -> FloatArray:
    """The rows of a picture, float32 [n_tokens, n].

    Args:
        grids: of each block, [rows, columns, n].
        blocks: what they are.
        newline: what ends rows, [n]; None to leave these ends out.
    """
    parts = []
    for grid, block in zip(grids, blocks, strict=True):
        if block.has_newlines and newline is not None:
            ends = np.broadcast_to(newline, (block.rows, 1, len(newline)))
            parts.append(np.concatenate([grid, ends], axis=1).reshape(-1, len(newline)))
        else:
            parts.append(grid.reshape(-1, grid.shape[2]))
    return np.concatenate(parts)
