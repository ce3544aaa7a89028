"""Which image tokens to keep when a picture may cost only so many (``--image-tokens``).

Most of them are those of the patches to which the tower's [CLS] token attends most, as in FasterVLM
(arXiv 2412.01818). Attention alone can leave out whole regions, so a share is spread over the picture: each
of these is the patch farthest from all that are kept, a rule that leaves no gap more than twice as wide as it
must be (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985).
"""

from collections.abc import Sequence
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.image_spec import Size
from acestep_gguf.errors import BundleError
from acestep_gguf.vision.blocks import Block

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]

SPREAD_SHARE: Final = 0.25


def kept_patches(attention: FloatArray, grid: tuple[int, int], n_kept: int) -> IndexArray:
    """Indices of the patches to keep, ascending, [min(n_kept, n_patches)].

    Args:
        attention: what each patch receives, float32 [n_patches], in reading order.
        grid: rows and columns of patches.
        n_kept: how many to keep.
    """
    n_patches = len(attention)
    if n_kept >= n_patches:
        return np.arange(n_patches)
    n_spread = int(SPREAD_SHARE * n_kept)
    kept = list(np.argsort(-attention, kind="stable")[: n_kept - n_spread])  # of equals, the first
    places = np.indices(grid).reshape(2, n_patches)  # row and column of each patch
    gaps = np.full(n_patches, np.iinfo(np.intp).max)  # squared distance to the nearest that is kept
    for patch in kept:
        gaps = np.minimum(gaps, _squared_distances(places, patch))
    for _ in range(n_spread):
        farthest = np.flatnonzero(gaps == gaps.max())
        patch = farthest[np.argmax(attention[farthest])]
        kept.append(patch)
        gaps = np.minimum(gaps, _squared_distances(places, patch))
    return np.sort(np.array(kept, np.intp))


def kept_of_blocks(attention: FloatArray, blocks: Sequence[Block], n_kept: int) -> IndexArray:
    """Rows of a picture's embeds to keep, ascending, [min(n_kept, n_patches)]: each grid gets its share.

    Args:
        attention: what each patch receives, float32 [n_patches], of one grid after the other.
        blocks: the grids.
        n_kept: how many to keep.
    """
    n_patches = sum(block.n_patches for block in blocks)
    n_kept = min(n_kept, n_patches)
    kept = []
    start = first_row = 0
    for block in blocks:
        end = start + block.n_patches
        share = n_kept * end // n_patches - n_kept * start // n_patches
        patches = kept_patches(attention[start:end], (block.rows, block.columns), share)
        ends_before = patches // max(block.columns, 1) * block.has_newlines
        kept.append(first_row + patches + ends_before)
        start, first_row = end, first_row + block.n_tokens
    return np.concatenate(kept)


def patch_grid(size: Size, n_patches: int) -> tuple[int, int]:
    """Rows and columns of the square patches that a picture of ``size`` is cut into.

    Raises:
        BundleError: so many patches do not form a grid.
    """
    rows = max(1, round(sqrt(n_patches * size.height / size.width)))
    columns = n_patches // rows
    if rows * columns != n_patches:
        raise BundleError(
            f"{n_patches} patches do not form a grid over {size.width} x {size.height} pixels: convert again."
        )
    return rows, columns


def _squared_distances(places: npt.NDArray[np.intp], patch: int) -> npt.NDArray[np.intp]:
    offsets = places - places[:, patch, None]
    distances: npt.NDArray[np.intp] = (offsets * offsets).sum(axis=0)
    return distances
