"""What transformers makes of a checkpoint, in float32: the reference for parity tests and golden files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics2Processor

from acestep_gguf.quality.reference import read_processor
from tests.support.fidelity import ANSWER_TOKENS, Arrays, conversations, has_tiles, images_of, pictures
from tests.support.texts import TEXTS

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Greedy:
    """A greedy answer: its token ids and the logits that chose them, float32 [n, vocabulary]."""

    ids: list[int]
    logits: Floats


class Reference:
    """A checkpoint in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        self.processor = read_processor(checkpoint)
        self.tokenizer = self.processor.tokenizer
        self.model, report = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        assert not any(report.values()), f"transformers itself does not read {checkpoint} whole: {report}"
        self.model.eval()

    def pixel_values(self, picture: Image.Image) -> Floats:
        """float32 [n_crops, 3, H, W] of a picture that is alone in its prompt, normalized."""
        pixels: Floats = self._inputs([picture])["pixel_values"].numpy()
        return pixels[0] if pixels.ndim == 5 else pixels

    def image_embeds(self, shown: list[Image.Image]) -> list[Floats]:
        """float32 [n_tokens, n_embd] of each picture of a prompt."""
        with torch.inference_mode():
            features = self.model.get_image_features(**self._inputs(shown)).pooler_output
        if n_crops := self._n_crops(shown):
            if isinstance(features, list):  # of one prompt, the rows of all pictures
                features = features[0].unflatten(0, (sum(n_crops), -1))
            features = [embeds.flatten(0, 1) for embeds in torch.split(features, n_crops)]
        if hasattr(self.processor, "image_break_token_id"):
            sizes = self._processed(shown)["image_sizes"].tolist()
            features = [self._with_row_ends(*pair) for pair in zip(features, sizes, strict=True)]
        return [embeds.numpy() for embeds in features]

    def _with_row_ends(self, features: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Pixtral's features of a picture with the embedding that stands behind each row but the last."""
        grid = features.reshape(size[0] // self.processor.patch_size, -1, features.shape[-1])
        row_end = self.model.get_input_embeddings().weight.detach()[self.processor.image_break_token_id]
        ends = row_end.expand(len(grid), 1, -1)
        return torch.cat([grid, ends], dim=1).flatten(0, 1)[:-1]

    def _n_crops(self, shown: list[Image.Image]) -> list[int]:
        """Crops of each picture, where the model is told nothing but all crops."""
        processed = self._processed(shown)
        if "rows" in processed:
            grids = zip(processed["rows"][0], processed["cols"][0], strict=True)
            return [rows * columns + 1 for rows, columns in grids]
        if hasattr(self.processor, "fake_image_token"):  # IDEFICS-2's
            return [len(processed["pixel_values"][0]) // len(shown)] * len(shown)
        return list(map(int, processed.get("num_patches", ())))

    def _processed(self, shown: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Pictures of one prompt as the processor prepares them; some want a list for each prompt."""
        options = {"return_tensors": "pt"} | getattr(type(self.processor), "images_kwargs", {})
        return dict(self.processor.image_processor([shown], **options))

    def _inputs(self, shown: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the model takes of the pictures of one prompt."""
        inputs = self._processed(shown)
        for key in ("num_patches", "rows", "cols"):
            inputs.pop(key, None)
        return inputs | {"pixel_values": inputs["pixel_values"].float()}

    def prompt_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of the rendered messages, each ``<image>`` repeated as often as a picture has image tokens."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        shown = images_of(messages)
        return list(self.processor(text=[text], images=[shown] if shown else None)["input_ids"][0])

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that a user typed: no control token in it is one."""
        return list(self.tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids)

    def text(self, ids: list[int]) -> str:
        """The answer that token ids spell."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def greedy(
        self, ids: list[int], shown: list[Image.Image], max_tokens: int, *, stop: bool = True
    ) -> Greedy:
        """Greedy decoding; without ``stop`` it always goes on to ``max_tokens``."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if shown:
            inputs |= self._inputs(shown)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=max_tokens,
                min_new_tokens=None,
                do_sample=False,
                eos_token_id=self.model.generation_config.eos_token_id if stop else -1,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        answer = output.sequences[0, len(ids) :].tolist()
        return Greedy(answer, torch.cat(output.logits).float().numpy())


def expected_counts(processor: Any, sizes: list[tuple[int, int]]) -> list[int | None]:
    """Tokens of pictures of widths and heights, each alone; None where the processor fails.

    Those around each picture, as InternVL's and Pixtral's have them, are no part of it.
    """
    if hasattr(processor, "image_break_token"):
        return [_pixtral_count(processor, *size) for size in sizes]
    if isinstance(processor, Idefics2Processor):
        return [idefics2_count(processor, *size) for size in sizes]
    n_around = 2 if hasattr(processor, "start_image_token") else 0

    def count(width: int, height: int) -> int | None:
        try:
            counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        except TypeError:  # it found no grid for the picture
            return None
        return int(counted["num_image_tokens"][0]) - n_around

    return [count(*size) for size in sizes]


def _pixtral_count(processor: Any, width: int, height: int) -> int | None:
    """As it resizes pictures: its own count takes 1 or 3 rows of a picture for channels."""
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    longest, step = processor.image_processor.size["longest_edge"], processor.patch_size
    fitted = get_resize_output_image_size(
        np.zeros((3, height, width), np.uint8), longest, step, input_data_format="channels_first"
    )
    rows, columns = (side // step for side in fitted)
    return rows * (columns + 1) - 1 if rows and columns else None


def idefics2_count(processor: Any, width: int, height: int) -> int | None:
    """Tokens of a picture without those around it; it has as many crops as can be resized."""
    if not idefics2_crops(processor.image_processor, width, height):
        return None
    image_token, around = processor.image_token, processor.fake_image_token
    ids = processor(text=f"{image_token}", images=None)["input_ids"][0]
    n_tokens = [processor.tokenizer.convert_tokens_to_ids(token) for token in (image_token, around)]
    return sum(int(ids.count(token)) for token in n_tokens) - 2


def idefics2_crops(image_processor: Any, width: int, height: int) -> list[tuple[int, int]]:
    """Heights and widths of all crops of a picture of this size; none where there is nothing to resize."""
    from transformers.models.idefics2.image_processing_pil_idefics2 import get_resize_output_image_size

    picture = np.broadcast_to(np.uint8(0), (3, height, width))  # takes no memory
    crops = image_processor.split_images(picture) if image_processor.do_image_splitting else [picture]
    if not all(crop.size for crop in crops):
        return []
    return [get_resize_output_image_size(crop, image_processor.size) for crop in crops]


def expected_arrays(name: str, checkpoint: Path) -> Arrays:
    """All that fidelity.assert_same compares, by transformers."""
    reference = Reference(checkpoint)
    images = pictures(name)
    arrays: Arrays = {}
    for i, image in enumerate(images):
        arrays[f"pixels.{i}"] = reference.pixel_values(image)
        (arrays[f"embeds.{i}"],) = reference.image_embeds([image])
    for i, text in enumerate(TEXTS):
        arrays[f"text.{i}"] = np.array(reference.text_ids(text), np.int32)
    for i, conversation in enumerate(conversations(name, images)):
        ids, shown = reference.prompt_ids(conversation), images_of(conversation)
        if len(shown) > 1 and has_tiles(name):
            arrays |= {f"shown.{i}.{k}": rows for k, rows in enumerate(reference.image_embeds(shown))}
        greedy = reference.greedy(ids, shown, ANSWER_TOKENS, stop=False)
        arrays[f"prompt.{i}"] = np.array(ids, np.int32)
        arrays[f"answer.{i}"] = np.array(greedy.ids, np.int32)
        arrays[f"logits.{i}"] = greedy.logits
    return arrays
