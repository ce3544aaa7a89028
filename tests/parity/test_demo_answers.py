"""Greedy answers of the F16 bundles next to transformers', over held-out questions of every skill."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acestep_gguf import AceStep
from acestep_gguf.convert import convert_checkpoint
from tests.support.fidelity import DEMO

pytestmark = pytest.mark.parity

SHEETS = Path(__file__).parents[1] / "checkpoints" / "sheets"
N_QUESTIONS = 200
MAX_TOKENS = 96
# Where the two best logits lie closer than this, rounding may choose.
TIE = 1e-2


def held_out(checkpoint: Path) -> Iterator[Any]:
    """Questions of all skills in turn."""
    from scripts.demo.questions import SKILLS, held_out_questions
    from scripts.demo.sheets import SHEET_SKILLS, held_out_sheets

    skills, source = (SHEET_SKILLS, held_out_sheets) if checkpoint == SHEETS else (SKILLS, held_out_questions)
    per_skill = -(-N_QUESTIONS // len(skills))
    by_skill = [list(source(skill, per_skill)) for skill in skills]
    return islice((question for row in zip(*by_skill, strict=True) for question in row), N_QUESTIONS)


@pytest.mark.parametrize("checkpoint", [DEMO, SHEETS], ids=["demo", "sheets"])
def test_answers_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    from tests.parity.reference import Reference

    convert_checkpoint(checkpoint, tmp_path / "bundle", ["F16"])
    reference = Reference(checkpoint)
    differences, ties = [], 0
    with AceStep(tmp_path / "bundle", vision="float32") as model:
        for asked in held_out(checkpoint):
            images = list(asked.images)
            question = asked.question.text
            parts = [
                *({"type": "image", "image": image} for image in images),
                {"type": "text", "text": question},
            ]
            ids = reference.prompt_ids([{"role": "user", "content": parts}])
            expected = reference.greedy(ids, images, MAX_TOKENS)
            ours = model.generate(question, images, max_tokens=MAX_TOKENS).text
            theirs = reference.text(expected.ids)
            if ours == theirs:
                continue
            same = next(
                n
                for n in range(len(expected.ids), -1, -1)
                if ours.startswith(reference.text(expected.ids[:n]))
            )
            second, best = np.sort(expected.logits[min(same, len(expected.logits) - 1)])[-2:]
            if best - second < TIE:
                ties += 1
            else:
                differences.append((question, ours, theirs))
    print(f"{N_QUESTIONS} questions, {len(differences)} differences, {ties} ties")
    assert not differences
