"""Whether the demo bundle's answers to held-out questions stay the same however they are computed."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from acestep_gguf import AceStep
from acestep_gguf.decoding import speculation
from acestep_gguf.decoding.speculation import Pace
from acestep_gguf.prompt.messages import Message, user_message
from scripts.bench.table import Note, Row, Rows
from scripts.demo.questions import DESCRIBE, SKILLS, HeldOut, held_out_questions

SMALL_CALLS = {"n_batch": 32, "n_ubatch": 32}


@dataclass(frozen=True)
class Outcome:
    """An answer, and the logits of its last token, float32 [n_vocab]."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    guesses: tuple[int, int]  # how many were right, of how many


def accuracy_rows(bundle: Path, per_skill: int) -> Rows:
    """What the int8 tower costs a trained model."""
    vision = ["--vision", "float32", "--vision", "int8", "--json"]
    command = [
        sys.executable,
        "-m",
        "scripts.demo.evaluate",
        str(bundle),
        "--per-skill",
        str(per_skill),
        *vision,
    ]
    done = subprocess.run(command, check=True, capture_output=True)
    exact, int8 = (
        100 * float(np.mean([tallies[skill] for skill in SKILLS]))
        for tallies in json.loads(done.stdout).values()
    )
    what = f"demo, {per_skill} questions a skill: right with int8, points below float32"
    yield Row(what, f"{int8:.2f} %", f"{exact:.2f} %", exact - int8, 0.5)


def agreement_rows(bundle: Path, per_skill: int) -> Rows:
    """Answers with the cache, with guesses, in a chat and in small calls, against plain ones."""
    asked = [one for skill in SKILLS for one in held_out_questions(skill, per_skill)]
    with AceStep(bundle) as model, tempfile.TemporaryDirectory() as cache:
        plain = [answer(model, [question(one)]) for one in asked]
        follow_ups = [answer(model, follow_up(model, one)) for one in asked]
        ways: dict[str, dict[str, Any]] = {
            "small calls": SMALL_CALLS,
            "cache, empty": {"cache": cache},
            "cache": {"cache": cache},
        }
        guessing: dict[str, dict[str, Any]] = {
            "--spec-type ngram-simple": {"spec_type": "ngram-simple"},
            "--draft, itself": {"draft": bundle},
        }
        found = {}
        for name, options in ways.items():
            with AceStep(bundle, **options) as other:
                found[name] = [answer(other, [question(one)]) for one in asked]
        for name, options in guessing.items():
            with always_guessing(), AceStep(bundle, **options) as other:
                found[name] = [answer(other, [question(one)]) for one in asked]
        in_chat = [answer(model, follow_up(model, one), exact=False) for one in asked]
        noise = max(
            float(np.abs(one.logits - other.logits).max())
            for one, other in zip(plain, found["small calls"], strict=True)
            if one.tokens == other.tokens
        )
        for name in ("cache, empty", "cache"):
            differing = sum(not same_bits(*pair) for pair in zip(plain, found[name], strict=True))
            yield Row(f"demo: answers or logits that differ, {name}", str(differing), "0", differing, 0)
        yield Note("demo: what small calls change in logits at most", f"{noise:.4f}")
        messages = [[question(one)] for one in asked]
        for name in ("small calls", *guessing):
            yield from difference_rows(model, name, messages, plain, found[name], noise)
        for name in guessing:
            accepted, drafted = (
                sum(counts) for counts in zip(*(one.guesses for one in found[name]), strict=True)
            )
            yield Note(f"demo: guesses, {name}", f"{accepted} of {drafted} right")
        messages = [follow_up(model, one) for one in asked]
        yield from difference_rows(model, "a chat that goes on", messages, follow_ups, in_chat, noise)


@contextmanager
def always_guessing() -> Iterator[None]:
    """Guess on, whatever it costs: on a model of this size it loses, and would never begin."""
    with (
        patch.object(Pace, "length", lambda pace, _: 4 if pace.written_s else 0),
        patch.object(speculation, "PATIENCE", 0.0),
    ):
        yield


def question(one: HeldOut) -> Message:
    return user_message(one.question.text, one.images)


def follow_up(model: AceStep, one: HeldOut) -> list[Message]:
    """The question as the second one about its pictures."""
    first = user_message(DESCRIBE[0], one.images)
    return [
        first,
        {"role": "assistant", "content": model.generate([first])},
        user_message(one.question.text, []),
    ]


def answer(
    model: AceStep, messages: Sequence[Message], *, exact: bool = True, max_tokens: int = 512
) -> Outcome:
    given = model.generate(messages, exact=exact, max_tokens=max_tokens)
    logits = model._decoder.context.logits()
    return Outcome(given.tokens, logits, (given.usage.accepted_tokens, given.usage.drafted_tokens))


def same_bits(one: Outcome, other: Outcome) -> bool:
    return one.tokens == other.tokens and np.array_equal(one.logits, other.logits)


def difference_rows(
    model: AceStep,
    name: str,
    messages: Sequence[Sequence[Message]],
    plain: Sequence[Outcome],
    found: Sequence[Outcome],
    noise: float,
) -> Rows:
    """Answers that differ; those beyond noise must be none."""
    gaps = [
        gap(model, asked, one.tokens, other.tokens)
        for asked, one, other in zip(messages, plain, found, strict=True)
        if one.tokens != other.tokens
    ]
    beyond = sum(one > 2 * noise for one in gaps)  # both logits may move
    what = f"demo: answers that differ beyond noise, {name}"
    yield Row(what, str(beyond), f"of {len(plain)}", beyond, 0)
    shown = ", ".join(f"{one:.4f}" for one in gaps)
    yield Note(
        f"demo: answers that differ, {name}", f"{len(gaps)}; gaps of the two best logits: {shown or 'none'}"
    )


def gap(model: AceStep, messages: Sequence[Message], one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How far apart the two best logits lie, in the plain way, where two answers part."""
    n_common = next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
    best = np.sort(answer(model, messages, max_tokens=n_common + 1).logits)[-2:]
    return float(best[1] - best[0])
