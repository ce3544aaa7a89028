"""What fewer image tokens cost, by which are kept, and by whether they keep their places in the prompt.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.bench.token_choice demo-bundle acestep_gguf/demo --per-skill 150

The decoder is the checkpoint's, in transformers, so that tokens may have any positions; llama.cpp takes only
those that follow each other. Right answers in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, AutoProcessor

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.image import crops_of
from acestep_gguf.vision.tiling import tiling_of
from acestep_gguf.vision.token_selection import kept_patches
from acestep_gguf.vision.tower import VisionTower
from scripts.demo.evaluate import BATCH, chat
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions

MAX_TOKENS = 80

Array = np.ndarray[Any, Any]


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# Which patches to keep: of embeds, attention, the token embeddings of the question, and how many.
CHOICES: dict[str, Callable[[Array, Array, Array, int], Array]] = {
    "attention": lambda _embeds, attention, _question, n: np.sort(np.argsort(-attention, kind="stable")[:n]),
    "evenly": lambda embeds, _attention, _question, n: np.linspace(0, len(embeds) - 1, n).round().astype(int),
    "diversity": lambda embeds, attention, _question, n: kept_patches(embeds, np.ones_like(attention), n),
    # As CDPruner has it for models without a text encoder: the mean cosine to the tokens of the question.
    "diversity, question": lambda embeds, _attention, question, n: kept_patches(
        embeds, (unit(embeds) @ unit(question).T).mean(axis=1), n
    ),
    "diversity, attention": lambda embeds, attention, _question, n: kept_patches(embeds, attention, n),
}


class PrunedAnswers:
    """Greedy answers of the checkpoint's decoder to what is left of the bundle's image embeds."""

    def __init__(self, bundle: Path, checkpoint: Path) -> None:
        described = Bundle.read(bundle)
        self.tower = VisionTower(bundle, described, "float32", n_threads=usable_cpus())
        self.tiling = tiling_of(described.tower()[1])
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(checkpoint, backend="pil")
        self.tokenizer = self.processor.tokenizer
        self.decoder = self.model.model.language_model
        self.stop = np.atleast_1d(self.model.generation_config.eos_token_id).tolist()
        self.encoded: dict[bytes, ImageEmbeds] = {}

    def encode(self, image: Any) -> ImageEmbeds:
        key = image.tobytes()
        if key not in self.encoded:
            crops = crops_of(image.convert("RGB"), self.tiling)
            self.encoded[key] = self.tower.encode_picture(crops, image.size, self.tiling)
        return self.encoded[key]

    @torch.inference_mode()
    def prompt(self, one: HeldOut, choice: str, n: int, *, keeps_places: bool) -> tuple[Any, list[int]]:
        """Rows of the prompt, float32 [n, n_embd], and their positions."""
        text = self.processor.apply_chat_template(chat(one), add_generation_prompt=True)
        tokenizer, embed = self.tokenizer, self.decoder.embed_tokens
        question = embed(torch.tensor(tokenizer(one.question.text)["input_ids"])).numpy()
        images, rows, positions, start = iter(one.images), [], [], 0
        for token in tokenizer(text)["input_ids"]:
            if token != self.model.config.image_token_id:
                rows.append(embed(torch.tensor([token])))
                positions.append(start)
                start += 1
                continue
            seen = self.encode(next(images))
            kept = CHOICES[choice](seen.embeds, seen.patch_attention, question, n)
            rows.append(torch.from_numpy(seen.embeds[kept]))
            places = kept if keeps_places else np.arange(len(kept))
            positions += [start + int(place) for place in places]
            start += len(seen.embeds) if keeps_places else len(kept)
        return torch.cat(rows), positions

    @torch.inference_mode()
    def batch(self, prompts: Sequence[tuple[Any, list[int]]]) -> list[str]:
        """Answers to prompts of any lengths, padded on the left."""
        longest = max(len(positions) for _, positions in prompts)
        pads = [longest - len(positions) for _, positions in prompts]
        padded = [pad(rows, (0, 0, n, 0)) for (rows, _), n in zip(prompts, pads, strict=True)]
        places = torch.tensor([[0] * n + positions for (_, positions), n in zip(prompts, pads, strict=True)])
        inputs = {"inputs_embeds": torch.stack(padded), "position_ids": places}
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
        chosen: list[Any] = []
        is_over = torch.zeros(len(prompts), dtype=torch.bool)
        past = None
        while len(chosen) < MAX_TOKENS and not is_over.all():
            output = self.decoder(**inputs, attention_mask=mask, past_key_values=past, use_cache=True)
            tokens = self.model.lm_head(output.last_hidden_state[:, -1]).argmax(-1)
            is_over |= torch.isin(tokens, torch.tensor(self.stop))
            chosen.append(tokens.masked_fill(is_over, self.stop[0]))
            past, places = output.past_key_values, places[:, -1:] + 1
            inputs = {"inputs_embeds": self.decoder.embed_tokens(tokens[:, None]), "position_ids": places}
            mask = pad(mask, (0, 1), value=1)
        return list(self.tokenizer.batch_decode(torch.stack(chosen, dim=1), skip_special_tokens=True))

    def share(self, asked: Sequence[HeldOut], choice: str, n: int, *, keeps_places: bool) -> float:
        """Right answers in percent."""
        right = 0
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            answers = self.batch([self.prompt(one, choice, n, keeps_places=keeps_places) for one in part])
            right += sum(got.strip() == one.question.answer for got, one in zip(answers, part, strict=True))
        return 100 * right / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path, help="that the bundle was made from")
    parser.add_argument("--per-skill", type=int, default=150)
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[32, 21, 16])
    arguments = parser.parse_args()
    answers = PrunedAnswers(arguments.bundle, arguments.checkpoint)
    asked = {skill: list(held_out_questions(skill, arguments.per_skill)) for skill in SKILLS}
    print("| tokens | choice | places |", " | ".join([*SKILLS, "mean"]), "|")
    print("|---" * (len(SKILLS) + 4) + "|")
    for n in arguments.image_tokens:
        for choice in CHOICES:
            for keeps_places in (False, True):
                shares = [
                    answers.share(asked[skill], choice, n, keeps_places=keeps_places) for skill in SKILLS
                ]
                cells = [f"{share:.1f}" for share in (*shares, float(np.mean(shares)))]
                print(
                    f"| {n} | {choice} | {'kept' if keeps_places else 'closed up'} |",
                    " | ".join(cells),
                    "|",
                    flush=True,
                )


if __name__ == "__main__":
    main()
