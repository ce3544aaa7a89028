"""How many tokens InternVL makes of pictures of many sizes: what is compared with its processor."""

import random
from pathlib import Path

from acestep_gguf.convert.model import open_model
from acestep_gguf.vision.blocks import n_tokens
from acestep_gguf.vision.tiling import tiling_of
from tests.support.tiny_internvl import TinyInternVL

# Real pictures' sides, so that a picture may have fewer pixels than its tiles, or more.
PUBLISHED = TinyInternVL(image_size=448, patch_size=14, vision_n_layers=1)
TOKEN_COUNTS = "internvl-token-counts"
N_SIZES = 500  # in the golden file
USUAL_SIDES = (1, 224, 448, 450, 480, 640, 896, 1024, 1080, 1344, 1920, 2480, 3508, 4000)


def random_sizes(n: int) -> list[tuple[int, int]]:
    """Widths and heights of ``n`` pictures, always the same; many have usual sides, on which grids tie."""
    generator = random.Random(0)

    def side() -> int:
        return generator.choice(USUAL_SIDES) if generator.random() < 0.5 else generator.randint(1, 5000)

    return [(side(), side()) for _ in range(n)]


def our_counts(checkpoint: Path, sizes: list[tuple[int, int]]) -> list[int]:
    """Tokens of pictures of ``sizes``, without those around them."""
    with open_model(checkpoint, None) as model:
        assert model.image is not None
        tiling = tiling_of(model.image)
    return [n_tokens(tiling.blocks(size)) for size in sizes]
