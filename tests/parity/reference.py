"""What transformers makes of a checkpoint, in float32: the reference for parity tests and golden files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.support.fidelity import ANSWER_TOKENS, Arrays, conversations, images_of, pictures
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
        # "pil" names the reference also where torchvision is installed.
        self.processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
        self.tokenizer = self.processor.tokenizer
        self.model, report = LlavaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        assert not any(report.values()), f"transformers itself does not read {checkpoint} whole: {report}"
        self.model.eval()

    def pixel_values(self, picture: Image.Image) -> Floats:
        """float32 [1, 3, H, W], normalized."""
        pixels: Floats = self.processor.image_processor(picture, return_tensors="np")["pixel_values"]
        return pixels.astype(np.float32)

    def image_embeds(self, pixel_values: Floats) -> Floats:
        """float32 [n_image_tokens, n_embd] of one picture."""
        with torch.inference_mode():
            features = self.model.get_image_features(pixel_values=torch.from_numpy(pixel_values))
        embeds: Floats = features.pooler_output[0].numpy()
        return embeds

    def prompt_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of the rendered messages, each ``<image>`` repeated as often as a picture has image tokens."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.processor(text=[text], images=images_of(messages) or None)["input_ids"][0])

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that a user typed: no control token in it is one."""
        return list(self.tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids)

    def text(self, ids: list[int]) -> str:
        """The answer that token ids spell."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def greedy(self, ids: list[int], pictures: list[Floats], max_tokens: int, *, stop: bool = True) -> Greedy:
        """Greedy decoding; without ``stop`` it always goes on to ``max_tokens``."""
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if pictures:
            inputs["pixel_values"] = torch.from_numpy(np.concatenate(pictures))
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


def expected_arrays(name: str, checkpoint: Path) -> Arrays:
    """All that fidelity.assert_same compares, by transformers."""
    reference = Reference(checkpoint)
    images = pictures(name)
    arrays: Arrays = {}
    for i, image in enumerate(images):
        arrays[f"pixels.{i}"] = reference.pixel_values(image)
        arrays[f"embeds.{i}"] = reference.image_embeds(arrays[f"pixels.{i}"])
    for i, text in enumerate(TEXTS):
        arrays[f"text.{i}"] = np.array(reference.text_ids(text), np.int32)
    for i, conversation in enumerate(conversations(images)):
        ids = reference.prompt_ids(conversation)
        shown = [reference.pixel_values(image) for image in images_of(conversation)]
        greedy = reference.greedy(ids, shown, ANSWER_TOKENS, stop=False)
        arrays[f"prompt.{i}"] = np.array(ids, np.int32)
        arrays[f"answer.{i}"] = np.array(greedy.ids, np.int32)
        arrays[f"logits.{i}"] = greedy.logits
    return arrays
