"""Tiny checkpoints that cut pictures up as published ones do: tiles of the true sizes, all their grids."""

from pathlib import Path

import numpy as np

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.convert.checkpoint.config import parse_config
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.image_processor import read_image_spec
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.blocks import n_tokens
from acestep_gguf.vision.tiling import tiling_of
from tests.support.tiny_checkpoints import TinyCheckpoint, tiny_onevision

CHECKPOINTS = {
    "llava-next": TinyCheckpoint(architecture="llava_next", image_size=336),
    "llava-onevision": tiny_onevision(
        image_size=384, grids=tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
    ),
}
# Square, 1 x 1, a strip; and where halves and quotients are rounded.
EDGES = ((1, 1), (4000, 30), (30, 4000), (336, 336), (384, 384), (672, 336), (1152, 1151), (2305, 2303))


def image_spec(folder: Path) -> ImageSpec:
    """How pictures are prepared for the checkpoint in ``folder``."""
    checkpoint = CheckpointFolder(folder)
    return read_image_spec(checkpoint, parse_config(checkpoint.config, folder / "config.json"), None)


def picture_sizes(n: int) -> list[tuple[int, int]]:
    """Widths and heights: ``EDGES`` and random ones, as many below 100 as above 1,000."""
    random = np.exp(np.random.default_rng(0).uniform(0, np.log(6000), (n - len(EDGES), 2)))
    return [*EDGES, *((int(width), int(height)) for width, height in random)]


def token_counts(spec: ImageSpec, sizes: list[tuple[int, int]]) -> list[int | None]:
    """Tokens of pictures that are alone; None of those that are too narrow."""

    def count(size: tuple[int, int]) -> int | None:
        try:
            return n_tokens(tiling_of(spec).blocks(size))
        except ImageError:
            return None

    return [count(size) for size in sizes]
