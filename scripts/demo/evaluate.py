"""Accuracy of a demo checkpoint, or of a bundle made of it, on the held-out questions.

python -m scripts.demo.evaluate acestep_gguf/demo
python -m scripts.demo.evaluate demo.bundle -q F16 -q Q4_K_M --per-skill 500
python -m scripts.demo.evaluate demo.bundle -q Q4_K_M --vision float32 --vision int8
python -m scripts.demo.evaluate demo.bundle -q Q4_K_M --image-tokens 64 --image-tokens 32 --image-tokens 16
python -m scripts.demo.evaluate tests/checkpoints/sheets --skill "numbers on sheets" --max-tiles 1
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from scripts.demo.checkpoint import IMAGE, Model, Processor, image_features
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions
from scripts.demo.scenes import PLACES
from scripts.demo.sheets import SHEET_SKILLS, held_out_sheets

Answerer = Callable[[Sequence[HeldOut]], list[str]]
BATCH = 50
OBJECT = re.compile(rf"(\w+) (\w+) ({'|'.join(sorted(PLACES, key=len, reverse=True))})")
BACKGROUND = re.compile(r"on an? (\w+) background")


@dataclass(frozen=True)
class Tally:
    right: float
    count: int

    @property
    def share(self) -> float:
        return self.right / self.count

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({self.right:.0f}/{self.count})"


def score(answer: Answerer, per_skill: int, skills: Sequence[str] = SKILLS) -> dict[str, Tally]:
    """Exact answers per skill; descriptions also by attribute."""
    tallies = {}
    for skill in skills:
        source = held_out_sheets if skill in SHEET_SKILLS else held_out_questions
        asked = list(source(skill, per_skill))
        given = answer(asked)
        wanted = [one.question.answer for one in asked]
        exact = sum(got.strip() == want for got, want in zip(given, wanted, strict=True))
        tallies[skill] = Tally(exact, per_skill)
        if skill == "description":
            parts = [attribute_share(got, want) for got, want in zip(given, wanted, strict=True)]
            tallies["description, by attribute"] = Tally(sum(parts), per_skill)
    return tallies


def attribute_share(given: str, wanted: str) -> float:
    """Attributes told right, of those wanted or of those told, whichever are more."""
    got, want = attributes(given), attributes(wanted)
    return len(got & want) / max(len(got), len(want))


def attributes(description: str) -> set[tuple[str, ...]]:
    """Each object's place, and colour and shape at that place; and the background."""
    found: set[tuple[str, ...]] = {("background", name) for name in BACKGROUND.findall(description)}
    for colour, shape, place in OBJECT.findall(description):
        found |= {(place,), (place, "colour", colour), (place, "shape", shape)}
    return found


class CheckpointAnswers:
    """Answers of a checkpoint through transformers, greedy, in batches."""

    def __init__(self, model: Model, processor: Processor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path) -> CheckpointAnswers:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoProcessor.from_pretrained(folder, backend="pil"))

    def __call__(self, asked: Sequence[HeldOut]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(asked), BATCH):
            answers += self._batch(asked[start : start + BATCH])
        return answers

    @torch.inference_mode()
    def _batch(self, asked: Sequence[HeldOut]) -> list[str]:
        prompts = [self.processor.apply_chat_template(chat(one), add_generation_prompt=True) for one in asked]
        images = [list(one.images) for one in asked]
        inputs = self.processor(
            text=prompts, images=images, return_tensors="pt", padding=True, padding_side="left"
        )
        output = self.model.generate(**inputs)
        new = output[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(new, skip_special_tokens=True))


class UntiledAnswers(CheckpointAnswers):
    """Answers of a LLaVA-NeXT about single pictures without their tiles.

    transformers has no setting for that, but packs a picture that has none: `image_newline` ends it.
    """

    @torch.inference_mode()
    def _batch(self, asked: Sequence[HeldOut]) -> list[str]:
        llava = self.model.model
        seen = self.processor.image_processor([one.images[0] for one in asked], return_tensors="pt")
        crops = llava.multi_modal_projector(image_features(self.model, seen["pixel_values"][:, 0]))
        rows, counts = llava.pack_image_features(
            crops.split(1), seen["image_sizes"], "default", image_newline=llava.image_newline
        )
        prompts = [
            self.processor.apply_chat_template(chat(one), add_generation_prompt=True).replace(
                IMAGE, IMAGE * count
            )
            for one, count in zip(asked, counts, strict=True)
        ]
        inputs = self.processor.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        embeds = llava.language_model.embed_tokens(inputs["input_ids"])
        at_image = inputs["input_ids"] == self.model.config.image_token_id
        embeds = embeds.masked_scatter(at_image[..., None], torch.cat(rows))
        output = self.model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
        return list(self.processor.batch_decode(output, skip_special_tokens=True))


def chat(asked: HeldOut) -> list[dict[str, object]]:
    parts = [{"type": "image"} for _ in asked.images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": asked.question.text}]}]


def bundle_scores(
    bundle: Path, per_skill: int, skills: Sequence[str] = SKILLS, **settings: Any
) -> dict[str, Tally]:
    """Answers of a bundle through our runtime; ``settings`` are arguments of ``AceStep``."""
    from acestep_gguf import AceStep  # noqa: PLC0415 - training imports this file and needs no runtime

    with AceStep(bundle, **settings) as model:
        return score(
            lambda asked: [model.generate(one.question.text, images=list(one.images)).text for one in asked],
            per_skill,
            skills,
        )


def checkpoint_scores(
    folder: Path, per_skill: int, skills: Sequence[str], max_tiles: int | None = None
) -> dict[str, Tally]:
    """Answers of a checkpoint through transformers; ``max_tiles`` is 1 or None."""
    answers = UntiledAnswers if max_tiles == 1 else CheckpointAnswers
    return score(answers.load(folder), per_skill, skills)


SETTINGS = {"quant": "{}", "vision": "{}", "image_tokens": "{} image tokens", "max_tiles": "at most {} tiles"}


def column_name(settings: dict[str, Any]) -> str:
    """The settings that were asked for."""
    named = [SETTINGS[name].format(value) for name, value in settings.items()]
    return ", ".join(named) or "default"


def table(columns: dict[str, dict[str, Tally]]) -> str:
    """Skill by settings, in Markdown."""
    rows = [["skill", *columns], ["---"] * (len(columns) + 1)]
    for skill in next(iter(columns.values())):
        rows.append([skill, *(str(tallies[skill]) for tallies in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a bundle or a checkpoint folder")
    parser.add_argument("-q", "--quant", action="append", help="decoder of a bundle; may repeat")
    parser.add_argument("--vision", action="append", help="precision of its tower; may repeat")
    parser.add_argument("--image-tokens", action="append", type=int, help="tokens a picture; may repeat")
    parser.add_argument("--max-tiles", action="append", type=int, help="tiles a picture; may repeat")
    parser.add_argument("--skill", action="append", choices=(*SKILLS, *SHEET_SKILLS), help="may repeat")
    parser.add_argument("--per-skill", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="shares as JSON, not a table")
    arguments = parser.parse_args()

    is_bundle = (arguments.path / "bundle.json").exists()
    if not is_bundle and (arguments.quant or arguments.vision or arguments.image_tokens):
        parser.error("only bundles have these settings")
    if not is_bundle and set(arguments.max_tiles or ()) - {1}:
        parser.error("a checkpoint gets its own tiles or, with --max-tiles 1, none")
    scores = bundle_scores if is_bundle else checkpoint_scores
    columns = {}
    for values in product(*(getattr(arguments, name) or [None] for name in SETTINGS)):
        settings = {name: value for name, value in zip(SETTINGS, values, strict=True) if value is not None}
        skills = arguments.skill or SKILLS
        columns[column_name(settings)] = scores(arguments.path, arguments.per_skill, skills, **settings)
    if arguments.json:
        shares = {
            name: {skill: tally.share for skill, tally in tallies.items()}
            for name, tallies in columns.items()
        }
        json.dump(shares, sys.stdout, indent=2)
    else:
        print(table(columns))


if __name__ == "__main__":
    main()
