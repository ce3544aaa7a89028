"""Tiny checkpoints that cut pictures up as published ones do: tiles of the true sizes, all their grids."""

import math
import random
from pathlib import Path

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.convert.model import open_model
from acestep_gguf.errors import ImageError
from acestep_gguf.vision.tiling import n_positions, tiling_of
from tests.support.tiny_checkpoints import TinyCheckpoint, tiny_onevision
from tests.support.tiny_idefics2 import TinyIdefics2
from tests.support.tiny_internvl import TinyInternVL
from tests.support.tiny_pixtral import TinyPixtral
from tests.support.tiny_smolvlm import TinySmolVLM

CHECKPOINTS: dict[str, TinyCheckpoint | TinyIdefics2 | TinyInternVL | TinyPixtral | TinySmolVLM] = {
    "internvl": TinyInternVL(image_size=448, patch_size=14, vision_n_layers=1),
    "smolvlm-500m": TinySmolVLM(
        decoder="smollm", image_size=512, patch_size=16, scale_factor=4, longest_edge=2048
    ),
    "smolvlm-2.2b": TinySmolVLM(
        decoder="smollm", image_size=384, patch_size=14, scale_factor=3, longest_edge=1536
    ),
    "pixtral": TinyPixtral(decoder="mistral", image_size=1024, patch_size=16),
    "idefics2": TinyIdefics2(
        decoder="mistral", image_size=980, patch_size=14, longest_edge=980, shortest_edge=378, n_latents=64
    ),
    "idefics2-whole": TinyIdefics2(
        decoder="mistral", image_size=980, patch_size=14, longest_edge=980, shortest_edge=378, splits=False
    ),
    "llava-next": TinyCheckpoint(architecture="llava_next", image_size=336),
    "llava-onevision": tiny_onevision(
        image_size=384, grids=tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
    ),
}
# Strips, and sides on which grids tie or numbers are rounded.
STRIPS = ((1, 1), (4000, 30), (30, 4000), (1, 700), (1152, 1151))
USUAL_SIDES = (224, 336, 384, 448, 450, 480, 640, 672, 896, 1024, 1080, 1344, 1920, 2305, 2480, 3508, 4000)


def image_spec(folder: Path) -> ImageSpec:
    """How pictures are prepared for the checkpoint in ``folder``."""
    with open_model(folder, None) as model:
        assert model.image is not None
        return model.image


def picture_sizes(n: int) -> list[tuple[int, int]]:
    """Widths and heights of ``n`` pictures, always the same: some strips, usual sides, random ones."""
    generator = random.Random(0)

    def side() -> int:
        is_usual = generator.random() < 0.3
        return (
            generator.choice(USUAL_SIDES) if is_usual else int(math.exp(generator.uniform(0, math.log(6000))))
        )

    return [*STRIPS, *((side(), side()) for _ in range(n - len(STRIPS)))]


def token_counts(spec: ImageSpec, sizes: list[tuple[int, int]]) -> list[int | None]:
    """Tokens of pictures that are alone; None of those that are too narrow."""

    def count(size: tuple[int, int]) -> int | None:
        try:
            return n_positions(tiling_of(spec), size)
        except ImageError:
            return None

    return [count(size) for size in sizes]
