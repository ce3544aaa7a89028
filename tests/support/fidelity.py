"""What is compared with transformers, live (tests/parity) and through stored files (tests/golden)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.support.stages import Stages, assert_same_embeds, assert_same_logits, assert_same_pixels
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import MISTRAL_WINDOW, TinyCheckpoint, tiny_onevision
from tests.support.tiny_idefics2 import TinyIdefics2
from tests.support.tiny_internvl import TinyInternVL
from tests.support.tiny_pixtral import TinyPixtral
from tests.support.tiny_smolvlm import TinySmolVLM

DEMO = Path(__file__).parents[2] / "acestep_gguf" / "demo"
ANSWER_TOKENS = 6
SIZES = ((90, 61), (40, 133), (56, 56), (17, 23))
TILED_SIZES = ((61, 90), (133, 40), (56, 56), (1, 1), (400, 9))
IDEFICS2_SIZES = ((61, 90), (133, 40), (56, 56), (2, 3), (400, 9), (97, 301))
INTERNVL_SIZES = ((61, 90), (133, 40), (56, 56), (1, 1), (4000, 30))

TINY_VIT: dict[str, Any] = {"image_size": 28, "patch_size": 7}
GRIDS_OF_9 = tuple((rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3))
TINY: dict[str, TinyCheckpoint] = {
    "gelu-v4": TinyCheckpoint(activation="gelu", image_size=56),
    "quick-gelu-tied-v5": TinyCheckpoint(
        activation="quick_gelu", tied=True, layout="v5", seed=1, image_size=42
    ),
    "yarn-f16-shards": TinyCheckpoint(yarn=True, layout="v4.52", dtype="F16", n_shards=3, seed=2),
    "yarn-tied-f32-v5": TinyCheckpoint(yarn=True, tied=True, layout="v5", dtype="F32", seed=3, n_layers=3),
    "tanh-full-padded": TinyCheckpoint(
        activation="gelu_pytorch_tanh", strategy="full", pads_to_square=True, projector_bias=False, seed=4
    ),
    "two-feature-layers": TinyCheckpoint(layout="v5", feature_layer=(-2, -1), n_kv_heads=1, seed=5),
    # LLaVA-1.5: as many heads of keys as of queries.
    "llava-1.5-v4": TinyCheckpoint(
        decoder="llama", activation="quick_gelu", n_kv_heads=4, image_size=42, dtype="F16", seed=6
    ),
    "llava-1.5-gqa-v5": TinyCheckpoint(decoder="llama", layout="v5", image_size=42, seed=7),
    # llava-interleave-qwen: pictures that the patches do not fill.
    "llava-interleave-v4": TinyCheckpoint(
        tower="siglip",
        activation="gelu_pytorch_tanh",
        feature_layer=-1,
        strategy="full",
        image_size=48,
        tied=True,
        seed=8,
    ),
    "siglip-default-v5": TinyCheckpoint(
        decoder="llama",
        yarn=True,
        tower="siglip",
        activation="gelu_pytorch_tanh",
        layout="v5",
        image_size=48,
        seed=9,
    ),
    # Heads of 128 rows, which config.json does not say, and of 32 rows, half of the hidden size.
    "qwen3-v4": TinyCheckpoint(decoder="qwen3", image_size=42, seed=10),
    "qwen3-tied-v5": TinyCheckpoint(
        decoder="qwen3", layout="v5", head_dim=32, tied=True, yarn=True, dtype="F32", seed=11
    ),
    # Mistral 7B v0.1 has a window, which version 4's config.json leaves out; later ones have none.
    "mistral-window-v4": TinyCheckpoint(decoder="mistral", sliding_window=MISTRAL_WINDOW, seed=12),
    "mistral-head-dim-v5": TinyCheckpoint(
        decoder="mistral", layout="v5", head_dim=32, image_size=42, dtype="F16", seed=13
    ),
    "llama3-v4": TinyCheckpoint(decoder="llama3", seed=14),
    "llama3-tied-v5": TinyCheckpoint(decoder="llama3", layout="v5", tied=True, image_size=42, seed=15),
    # Llama 3.2: its RoPE scaling, and heads that are no share of the hidden size.
    "llama3.2-v4": TinyCheckpoint(decoder="llama3", llama3_rope=True, head_dim=32, seed=16),
    "llama3.2-v5": TinyCheckpoint(
        decoder="llama3",
        llama3_rope=True,
        tied=True,
        tower="siglip",
        activation="gelu_pytorch_tanh",
        feature_layer=-1,
        strategy="full",
        layout="v5",
        image_size=48,
        seed=17,
    ),
    "llava-next-vicuna-v4": TinyCheckpoint(
        architecture="llava_next",
        decoder="llama",
        activation="quick_gelu",
        image_size=42,
        dtype="F16",
        seed=18,
    ),
    "llava-next-mistral-v4.52": TinyCheckpoint(
        architecture="llava_next", decoder="mistral", layout="v4.52", grids=((1, 1), (2, 3), (3, 2)), seed=19
    ),
    "llava-next-tied-v5": TinyCheckpoint(
        architecture="llava_next",
        layout="v5",
        tied=True,
        image_size=42,
        grids=((1, 2), (3, 1), (2, 2)),
        seed=20,
    ),
    "llava-onevision-v4": tiny_onevision(image_size=48, grids=GRIDS_OF_9, tied=True, seed=21),
    # So few tokens that most of a picture's are shrunk.
    "llava-onevision-shrunk-v5": tiny_onevision(
        layout="v5", image_size=48, grids=GRIDS_OF_9, max_crops=2, seed=22
    ),
    # InternVL's towers: of 300M parameters, and of 6B.
    "internvl-v4": TinyInternVL(**TINY_VIT, has_biases=True, seed=23),
    "internvl-6b-v5": TinyInternVL(
        **TINY_VIT,
        layout="v5",
        has_qk_norm=True,
        norm_type="rms_norm",
        rope={"type": "dynamic", "rope_type": "dynamic", "factor": 2.0},
        seed=24,
    ),
    "internvl-qwen3-tied-v4.52": TinyInternVL(
        **TINY_VIT, layout="v4.52", decoder="qwen3", tied=True, has_biases=True, dtype="F16", seed=25
    ),
    "internvl-llama3-v5": TinyInternVL(
        **TINY_VIT, layout="v5", decoder="llama3", max_patches=3, tied=True, seed=26
    ),
    "internvl-biases-under-norms-v4": TinyInternVL(
        **TINY_VIT, has_qk_norm=True, has_biases=True, min_patches=2, max_patches=4, dtype="F32", seed=27
    ),
    "internvl-one-tile-v4": TinyInternVL(
        patch_size=7, image_size=42, max_patches=1, has_tokenizer_json=False, seed=28
    ),
    "smolvlm-v4": TinySmolVLM(decoder="smollm", n_heads=4, n_kv_heads=2, seed=29),
    "smolvlm2-tied-v5": TinySmolVLM(
        model_type="smolvlm",
        decoder="smollm",
        layout="v5",
        tied=True,
        image_size=42,
        patch_size=7,
        scale_factor=3,
        longest_edge=126,
        dtype="F16",
        seed=30,
    ),
    "idefics3-llama3-v4": TinySmolVLM(
        decoder="llama3", image_size=28, patch_size=7, longest_edge=84, seed=31
    ),
    # The grid of the 2.2B one: 27 positions a side, of which nine are a token.
    "smolvlm-27-positions-v5": TinySmolVLM(
        decoder="smollm",
        layout="v5",
        image_size=54,
        patch_size=2,
        scale_factor=3,
        longest_edge=108,
        dtype="F32",
        seed=32,
    ),
    "pixtral-v4": TinyPixtral(decoder="tekken", head_dim=32, seed=33),
    "pixtral-silu-v5": TinyPixtral(
        decoder="mistral",
        layout="v5",
        head_dim=32,
        activation="silu",
        vision_rope_theta=100.0,
        image_size=60,
        patch_size=5,
        dtype="F32",
        seed=34,
    ),
    "idefics2-v4": TinyIdefics2(decoder="mistral", sliding_window=MISTRAL_WINDOW, seed=35),
    # Sides that are no multiples of a patch, a table for other sizes than there are.
    "idefics2-tied-v5": TinyIdefics2(
        decoder="mistral",
        layout="v5",
        tied=True,
        patch_size=6,
        image_size=60,
        longest_edge=70,
        shortest_edge=17,
        resampler_hidden_size=256,
        dtype="F32",
        seed=36,
    ),
    "idefics2-whole-v4": TinyIdefics2(
        decoder="mistral",
        splits=False,
        longest_edge=140,
        n_latents=16,
        depth=3,
        n_resampler_heads=6,
        n_resampler_kv_heads=1,
        dtype="F16",
        seed=37,
    ),
}

Arrays = dict[str, NDArray[Any]]


def write_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint of a case: the demo's, or a tiny one that is written into ``folder``."""
    return DEMO if name == "demo" else TINY[name].write(folder / name)


def has_tiles(name: str) -> bool:
    """Whether pictures are cut up for the model of a case."""
    return name != "demo" and TINY[name].has_tiles


def pictures(name: str) -> list[Image.Image]:
    """Pictures of several aspects; the demo's own for the demo."""
    if name == "demo":
        paths = sorted(
            path for path in (DEMO / "pictures").iterdir() if path.suffix in {".png", ".jpg", ".webp"}
        )
        return [Image.open(path).convert("RGB") for path in paths]
    sizes: tuple[tuple[int, int], ...] = TILED_SIZES if has_tiles(name) else SIZES
    if isinstance(TINY[name], TinyInternVL | TinySmolVLM):
        sizes = INTERNVL_SIZES
    if isinstance(TINY[name], TinyIdefics2):
        sizes = IDEFICS2_SIZES
    return [drawing(size, seed) for seed, size in enumerate(sizes)]


def drawing(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture with edges, slopes and noise."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 40, (size[1], size[0], 3), np.uint8)
    slope = np.linspace(0, 200, size[0]).astype(np.uint8)[None, :, None]
    image = Image.fromarray(noise + slope)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, radius = generator.integers(0, min(size), 3).tolist()
        draw.ellipse((x, y, x + radius, y + radius), fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


def conversations(name: str, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
    """A picture and a question; several pictures, turns and a system message; none; one that comes late."""

    def user(text: str, *shown: Image.Image) -> dict[str, Any]:
        parts = [{"type": "image", "image": image} for image in shown]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

    late = [
        user("Wait for it."),
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        user("What is this?", images[1]),
    ]
    return [
        [user("Describe this image in detail", images[0])],
        [
            {"role": "system", "content": [{"type": "text", "text": "You are brief."}]},
            user("What is this?", images[1]),
            {"role": "assistant", "content": [{"type": "text", "text": "A picture."}]},
            user("Compare the two pictures 🎉.", images[2], images[0]),
        ],
        [user("How many? é")],
        *([late] if has_tiles(name) else []),
    ]


def images_of(conversation: Sequence[dict[str, Any]]) -> list[Image.Image]:
    """The pictures of a conversation, in order."""
    parts = [part for message in conversation for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def assert_same(stages: Stages, name: str, expected: Arrays) -> None:
    """Compare each stage of our side with ``expected``, which reference.expected_arrays made."""
    images = pictures(name)
    for i, image in enumerate(images):
        assert_same_pixels(stages.pixel_values(image), expected[f"pixels.{i}"], stages.bundle)
        assert_same_embeds(stages.image_embeds(image), expected[f"embeds.{i}"])
    for i, text in enumerate(TEXTS):
        assert stages.text_ids(text) == expected[f"text.{i}"].tolist(), repr(text)
    for i, conversation in enumerate(conversations(name, images)):
        shown = images_of(conversation)
        embeds = [stages.image_embeds(image, n_pictures=len(shown)) for image in shown]
        for k, rows in enumerate(embeds):
            if f"shown.{i}.{k}" in expected:
                assert_same_embeds(rows, expected[f"shown.{i}.{k}"])
        inputs = [
            stages.image_input(b"%d" % k, image, n_pictures=len(shown)) for k, image in enumerate(shown)
        ]
        assert stages.prompt_ids(conversation, inputs) == stages.without_row_ends(expected[f"prompt.{i}"])
        answer = expected[f"answer.{i}"].tolist()
        logits = stages.logits(conversation, inputs, embeds, answer)
        assert_same_logits(logits, expected[f"logits.{i}"])
        assert logits.argmax(axis=1).tolist() == answer
