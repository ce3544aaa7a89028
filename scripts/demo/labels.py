"""What is in each patch of a drawn picture: labels that speed up training and are then forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scripts.demo.scenes import (
    COLOURS,
    GLYPHS,
    GRID,
    KINDS,
    MAX_BARS,
    PAINTS,
    PATCH,
    PLACES,
    SHAPES,
    SIDE,
    Mark,
    Scene,
)

# Each patch is labelled twice, for its left and its right half: a glyph is narrower than a patch.
LABEL_SIZES = {
    "kind": len(KINDS) + 1,  # 0 is background
    "colour": len(PAINTS),
    "place": len(PLACES),
    "rank": MAX_BARS,
    "glyph": len(GLYPHS),
}
IGNORE = -100


def patch_labels(marks: Sequence[Mark]) -> NDArray[np.int64]:
    """[GRID * GRID, 2, len(LABEL_SIZES)]; IGNORE where a label says nothing about a patch."""
    labels = np.full((GRID, 2 * GRID, len(LABEL_SIZES)), IGNORE, np.int64)
    labels[..., 0] = 0
    half = PATCH // 2
    for mark in marks:
        x0, y0, x1, y1 = mark.box
        columns = np.arange(2 * GRID) * half
        rows = np.arange(GRID) * PATCH
        across = np.clip(np.minimum(columns + half, x1) - np.maximum(columns, x0), 0, None)
        down = np.clip(np.minimum(rows + PATCH, y1) - np.maximum(rows, y0), 0, None)
        covered = np.outer(down >= 0.3 * PATCH, across >= 0.5 * half)
        labels[covered] = (
            KINDS.index(mark.kind) + 1,
            list(PAINTS).index(mark.colour),
            mark.place,
            mark.rank if mark.rank >= 0 else IGNORE,
            GLYPHS.index(mark.glyph) if mark.glyph else IGNORE,
        )
    return labels.reshape(GRID * GRID, 2, len(LABEL_SIZES))


CELL_LABEL_SIZES = (len(SHAPES) + 1, len(COLOURS))  # shape (0 is none) and colour


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """[GRID * GRID, 2]: the object in each patch's cell of the 3 x 3 grid."""
    labels = np.full((GRID, GRID, 2), IGNORE, np.int64)
    labels[..., 0] = 0
    cell_of = (np.arange(GRID) * PATCH + PATCH // 2) * 3 // SIDE
    for thing in scene.objects:
        row, column = divmod(thing.cell, 3)
        look = SHAPES.index(thing.shape) + 1, list(COLOURS).index(thing.colour)
        labels[np.outer(cell_of == row, cell_of == column)] = look
    return labels.reshape(GRID * GRID, 2)
