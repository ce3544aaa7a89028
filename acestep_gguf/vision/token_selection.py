"""Which image tokens to keep when a picture may cost only so many (``--image-tokens``).

A determinantal choice, as in CDPruner (arXiv 2506.10967): of all sets of patches, one with a large
determinant of the matrix of their likenesses. So no two that are kept say the same. A patch counts the more,
the more the tower's [CLS] token attends to it; CDPruner weighs patches by the question. docs/image_tokens.md
compares both, and with attention a picture's tokens stay the same for the next question.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.vision.blocks import Block, rows_of_blocks

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

# What the patch counts that is attended to least, where the one that is attended to most counts 1.
LEAST_WEIGHT: Final = 0.4
# Added to the likeness of a patch with itself, far above float32's rounding: where more are kept than there
# are directions, it decides.
RIDGE: Final = 1e-4
LEAST_GAIN: Final = RIDGE * LEAST_WEIGHT**2  # of any patch; rounding can make it less
TINY: Final = float(np.finfo(np.float32).tiny)


def kept_patches(embeds: FloatArray, attention: FloatArray, n_kept: int) -> IndexArray:
    """Indices of the patches to keep, ascending, [min(n_kept, n_patches)].

    The set is found greedily, each time the patch that the determinant grows by most, as in "Fast Greedy MAP
    Inference for Determinantal Point Process" (Chen, Zhang and Zhou, arXiv 1709.05135); of equals, the first.

    Args:
        embeds: of the patches, float32 [n_patches, n_embd].
        attention: what each patch receives, float32 [n_patches].
        n_kept: how many to keep.
    """
    n_patches = len(attention)
    if n_kept >= n_patches:
        return np.arange(n_patches)
    kernel = _kernel(embeds, attention)
    gains = np.diag(kernel).copy()  # by what factor each patch would multiply the determinant
    rows = np.zeros((n_kept, n_patches))  # of the Cholesky factor, one for each that is kept
    kept = np.zeros(n_kept, np.intp)
    for n, row in enumerate(rows):
        kept[n] = patch = gains.argmax()
        row[:] = (kernel[patch] - rows[:n, patch] @ rows[:n]) / np.sqrt(gains[patch])
        gains = np.maximum(gains - row**2, LEAST_GAIN)
        gains[kept[: n + 1]] = 0
    return np.sort(kept)


def kept_of_blocks(
    embeds: FloatArray, attention: FloatArray, blocks: Sequence[Block], n_kept: int
) -> IndexArray:
    """Rows of a picture's embeds to keep, ascending, [min(n_kept, n_patches)]: each grid gets its share.

    Args:
        embeds: of the picture, float32 [n_tokens, n_embd], as ``blocks`` say.
        attention: what each patch receives, float32 [n_patches], of one grid after the other.
        blocks: the grids.
        n_kept: how many to keep.
    """
    kept = []
    start = first_row = 0
    for block, share in zip(blocks, rows_of_blocks(blocks, n_kept), strict=True):
        end = start + block.n_patches
        patches = np.arange(block.n_patches)
        rows = first_row + patches + patches // max(block.columns, 1) * block.has_newlines
        kept.append(rows[kept_patches(embeds[rows], attention[start:end], share)])
        start, first_row = end, first_row + block.n_tokens
    return np.concatenate(kept)


def _kernel(embeds: FloatArray, attention: FloatArray) -> DoubleArray:
    """Likeness of each two patches, [n_patches, n_patches], times the weights of both.

    All embeds of a picture share a large mean, which tells nothing: likeness is the cosine without it.
    """
    scaled = embeds / max(float(np.abs(embeds).max()), TINY)  # squares of what a file holds could be infinite
    centred = scaled - scaled.mean(axis=0)
    directions = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), TINY)
    likeness = (directions @ directions.T).astype(np.float64)
    np.fill_diagonal(likeness, 1 + RIDGE)
    roots = np.sqrt(attention.astype(np.float64) - attention.min())
    weights = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * roots / (roots.max() or 1.0)
    return np.asarray(weights[:, np.newaxis] * likeness * weights)
