"""Answers of a bundle next to llama.cpp's own, from the bundle's decoder and mmproj file.

acestep-gguf convert acestep_gguf/demo demo-bundle -q F16 --mmproj F16
python -m scripts.checks.compare_llama_cpp demo-bundle

With --class-token-first, llama.cpp gets the class token where CLIP has it (see libmtmd.py), for a bundle that
was converted with the same option. Without, its image tokens are ours but for the first, and one place ahead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from acestep_gguf import AceStep
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert.tower.mmproj import CLASS_TOKEN_LAST_KEY
from acestep_gguf.prompt.chat_template import ChatTemplate
from acestep_gguf.vision.encoder import ImageEncoder
from scripts.checks.libmtmd import MARKER, LlamaCppPair
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions

MAX_TOKENS = 96


@dataclass
class Comparison:
    """Of the answers of llama.cpp with ours, and of the image embeds of all pictures."""

    same: int = 0
    right: int = 0
    min_cosine: float = 1.0
    differences: list[tuple[str, str, str]] = field(default_factory=list)


def held_out(count: int) -> Iterator[HeldOut]:
    """Questions of all skills in turn."""
    per_skill = -(-count // len(SKILLS))
    by_skill = [list(held_out_questions(skill, per_skill)) for skill in SKILLS]
    return islice((question for row in zip(*by_skill, strict=True) for question in row), count)


def compare(folder: Path, quant: str, mmproj: str, count: int, *, class_token_first: bool) -> Comparison:
    """Ask both the same questions."""
    bundle = Bundle.read(folder)
    template = ChatTemplate(bundle.prompt.chat_template, bundle.prompt.template_tokens)
    tower = ImageEncoder(folder, bundle, n_threads=2, precision="float32")
    files = (folder / bundle.decoder(quant).file, folder / bundle.mmproj[mmproj].file)  # type: ignore[index]
    is_shifted = read_gguf_header(files[1]).metadata.get(CLASS_TOKEN_LAST_KEY, False)
    found = Comparison()
    with (
        AceStep(folder, quant=quant, vision="float32") as ours,
        LlamaCppPair(*files, class_token_first=class_token_first) as theirs,
    ):
        for asked in held_out(count):
            question, images = asked.question.text, list(asked.images)
            text = f"{MARKER}\n" * len(images) + question
            prompt = template.render([{"role": "user", "content": text}])
            their_answer = theirs.answer(prompt, images, MAX_TOKENS)
            our_answer = ours.generate(question, images=images, max_tokens=MAX_TOKENS).text
            found.same += their_answer == our_answer
            found.right += their_answer.strip() == asked.question.answer
            if their_answer != our_answer:
                found.differences.append((question, our_answer, their_answer))
            for image in images:
                one = theirs.image_embeds(image)
                other = tower.encode(tower.prepare(image)).embeds
                if is_shifted:
                    one, other = one[:-1], other[1:]
                norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
                found.min_cosine = min(found.min_cosine, float(((one * other).sum(axis=1) / norms).min()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle with an mmproj file")
    parser.add_argument("-q", "--quant", default="F16")
    parser.add_argument("--mmproj", default="F16")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--class-token-first", action="store_true")
    arguments = parser.parse_args()
    found = compare(
        arguments.bundle,
        arguments.quant,
        arguments.mmproj,
        arguments.questions,
        class_token_first=arguments.class_token_first,
    )
    print(f"the same answers to {found.same} of {arguments.questions} questions, {found.right} right")
    print(f"cosine of image embeds at least {found.min_cosine:.6f}")
    for question, our_answer, their_answer in found.differences:
        print(f"{question}\n  ours:   {our_answer}\n  theirs: {their_answer}")


if __name__ == "__main__":
    main()
