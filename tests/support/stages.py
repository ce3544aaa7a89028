"""Each stage from a picture to a token by itself, as comparisons with transformers need them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.prompt.builder import ImageSpan, PromptBuilder
from acestep_gguf.prompt.segments import ImageInput, image_input
from acestep_gguf.vision.blocks import rows_of_blocks
from acestep_gguf.vision.image import crops_of, pixel_values
from acestep_gguf.vision.tiling import tiling_of
from acestep_gguf.vision.tower import VisionTower

Floats = NDArray[np.float32]

# One unit in the last place of a pixel, before normalization.
PIXEL_TOLERANCE = 1 / 255
EMBEDS_TOLERANCE = 1e-4  # of the largest value
LOGITS_TOLERANCE = 1e-3


class Stages:
    """A bundle's stages; the decoder computes with an F32 KV cache and without flash attention."""

    def __init__(self, folder: Path, ftype: str = "F32", n_ctx: int = 1280) -> None:
        self.bundle = Bundle.read(folder)
        self._tower = VisionTower(folder, self.bundle, "float32", n_threads=2)
        self._model = Model(folder / self.bundle.decoder(ftype).file)
        params = ContextParams(
            n_ctx=n_ctx, n_threads=2, n_threads_batch=2, type_k="f32", type_v="f32", flash_attn="off"
        )
        self._context = Context(self._model, params)
        self._prompts = PromptBuilder(self.bundle.prompt, self._model.tokenize, self._model.token_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._model.close()

    def pixel_values(self, picture: Image.Image) -> Floats:
        """float32 [n_crops, 3, H, W] of the largest crop; zeros fill up the others, as in transformers."""
        return batched(pixel_values(picture, self.bundle.tower()[1]))

    def image_embeds(self, picture: Image.Image, *, n_pictures: int = 1) -> Floats:
        """float32 [n_tokens, n_embd] of a picture in a prompt with ``n_pictures``."""
        tiling = tiling_of(self.bundle.tower()[1], n_pictures=n_pictures)
        return self._tower.encode_picture(crops_of(picture, tiling), picture.size, tiling).embeds

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that a user typed."""
        return self._prompts._text_tokens(text)

    def image_input(self, key: bytes, picture: Image.Image, *, n_pictures: int = 1) -> ImageInput:
        """What a picture in a prompt with ``n_pictures`` is to the decoder."""
        tiling = tiling_of(self.bundle.tower()[1], n_pictures=n_pictures)
        rows = rows_of_blocks(tiling.blocks(picture.size), None)
        return image_input(key, rows, tiling.marks(picture.size))

    def prompt_ids(self, messages: Sequence[dict[str, Any]], images: Sequence[ImageInput]) -> list[int]:
        """Ids of the prompt, with the image token as often as each picture has rows of embeds."""
        image_token = self.bundle.prompt.control_tokens[self.bundle.prompt.image_token or ""]
        ids: list[int] = []
        for span in self._prompts.build(messages).spans:
            if isinstance(span, ImageSpan):
                image = images[span.image]
                for part in image.parts or (image.n_tokens,):
                    ids += part if isinstance(part, tuple) else [image_token] * part
            else:
                ids += span.tokens
        return ids

    def without_row_ends(self, ids: NDArray[np.int32]) -> list[int]:
        """The same with the image token in the place of Pixtral's row ends, which are rows of embeds here."""
        control = self.bundle.prompt.control_tokens
        row_end, image_token = control.get("[IMG_BREAK]"), control[self.bundle.prompt.image_token or ""]
        return [image_token if token == row_end else token for token in ids.tolist()]

    def logits(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[ImageInput],
        embeds: Sequence[Floats],
        answer: Sequence[int],
    ) -> Floats:
        """Logits after the prompt and after each token of ``answer`` but the last: float32 [n, n_vocab]."""
        prompt = self._prompts.build(messages)
        decoder = Decoder(self._context)
        decoder.reset()
        decoder.prefill(
            prompt.segments(images),
            {image.key: rows for image, rows in zip(images, embeds, strict=True)},
        )
        logits = [self._context.logits()]
        for token in answer[:-1]:
            decoder.append([token])
            logits.append(self._context.logits())
        return np.stack(logits)


def batched(crops: Sequence[Floats]) -> Floats:
    """Crops [1, 3, H, W] each as one array, filled up with zeros on the right and below."""
    height, width = (max(crop.shape[axis] for crop in crops) for axis in (2, 3))
    filled = np.zeros((len(crops), 3, height, width), np.float32)
    for row, (crop,) in zip(filled, crops, strict=True):
        row[:, : crop.shape[1], : crop.shape[2]] = crop
    return filled


def assert_same_pixels(ours: Floats, reference: Floats, bundle: Bundle) -> None:
    """Equal within a unit in the last place, measured before normalization."""
    std = np.array(bundle.tower()[1].std, np.float32).reshape(1, 3, 1, 1)
    assert ours.shape == reference.shape
    assert np.abs((ours - reference) * std).max() <= PIXEL_TOLERANCE + 1e-6


def assert_same_embeds(ours: Floats, reference: Floats) -> None:
    """Equal within EMBEDS_TOLERANCE, relative to each token's largest value."""
    assert ours.shape == reference.shape
    error = np.abs(ours - reference).max(axis=1) / np.abs(reference).max(axis=1)
    assert error.max() <= EMBEDS_TOLERANCE


def assert_same_logits(ours: Floats, reference: Floats) -> None:
    """Equal within LOGITS_TOLERANCE wherever both have a row of the vocabulary."""
    assert len(ours) == len(reference)
    assert np.abs(ours - reference).max() <= LOGITS_TOLERANCE
