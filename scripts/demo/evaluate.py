"""Accuracy of the demo checkpoint, or of a bundle made of it, on the held-out questions.

python -m scripts.demo.evaluate acestep_gguf/demo
python -m scripts.demo.evaluate demo.bundle -q F16 -q Q4_K_M --per-skill 500
python -m scripts.demo.evaluate demo.bundle -q Q4_K_M --vision float32 --vision int8
python -m scripts.demo.evaluate demo.bundle -q Q4_K_M --image-tokens 64 --image-tokens 32 --image-tokens 16
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
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from scripts.demo.questions import SKILLS, HeldOut, held_out_questions
from scripts.demo.scenes import PLACES

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


def score(answer: Answerer, per_skill: int) -> dict[str, Tally]:
    """Exact answers per skill; descriptions also by attribute."""
    tallies = {}
    for skill in SKILLS:
        asked = list(held_out_questions(skill, per_skill))
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
    """Answers of the checkpoint through transformers, greedy, in batches."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path) -> CheckpointAnswers:
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, LlavaProcessor.from_pretrained(folder, backend="pil"))

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


def chat(asked: HeldOut) -> list[dict[str, object]]:
    parts = [{"type": "image"} for _ in asked.images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": asked.question.text}]}]


def bundle_scores(bundle: Path, per_skill: int, **settings: Any) -> dict[str, Tally]:
    """Answers of a bundle through our runtime; ``settings`` are arguments of ``AceStep``."""
    from acestep_gguf import AceStep  # noqa: PLC0415 - training imports this file and needs no runtime

    with AceStep(bundle, **settings) as model:
        return score(
            lambda asked: [model.generate(one.question.text, images=list(one.images)).text for one in asked],
            per_skill,
        )


def column_name(quant: str | None, vision: str | None, image_tokens: int | None) -> str:
    """The settings that were asked for."""
    tokens = None if image_tokens is None else f"{image_tokens} image tokens"
    return ", ".join(filter(None, (quant, vision, tokens))) or "default"


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
    parser.add_argument("--per-skill", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="shares as JSON, not a table")
    arguments = parser.parse_args()

    if (arguments.path / "bundle.json").exists():
        asked = (arguments.quant, arguments.vision, arguments.image_tokens)
        columns = {
            column_name(quant, vision, image_tokens): bundle_scores(
                arguments.path, arguments.per_skill, quant=quant, vision=vision, image_tokens=image_tokens
            )
            for quant, vision, image_tokens in product(*(values or [None] for values in asked))
        }
    else:
        answers = CheckpointAnswers.load(arguments.path)
        columns = {"checkpoint": score(answers, arguments.per_skill)}
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
