"""Schemas drawn at random, asked about the demo's pictures: is every answer valid, or says that it was cut?

python -m scripts.checks.json_schema demo-bundle -n 1000 --parallel 8
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

from hypothesis import Phase, given, seed, settings

from acestep_gguf.answer import Answer
from acestep_gguf.demo.questions import CHECKPOINT, read_questions
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.options import AnswerOptions
from tests.support.schemas import Schema, follows, schemas

LEAST_COMPLETE = 0.9
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1},
}


def drawn(count: int, number: int) -> list[Schema]:
    """So many schemas, the same for the same ``number``."""
    found: list[Schema] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(schemas())
    def keep(schema: Schema) -> None:
        found.append(schema)

    keep()
    return found[:count]


def asked(found: list[Schema], sampling: dict[str, Any], max_tokens: int) -> Iterator[Question]:
    for schema, demo in zip(found, cycle(read_questions(CHECKPOINT)), strict=False):
        options = AnswerOptions(json_schema=schema, max_tokens=max_tokens, **sampling)
        yield Question(demo.question, [CHECKPOINT / demo.image], options)


def verdict(answer: Answer | None, schema: Schema) -> str:
    if answer is None:
        return "error"
    if answer.finish_reason != "stop":
        return answer.finish_reason
    return "valid" if follows(answer.text, schema) else "INVALID"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-n", type=int, default=100, help="schemas")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("-np", "--parallel", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = drawn(options.n, options.seed)
    holds = True
    print("| sampling | schemas | valid | length | other | tokens/s |\n|---|---|---|---|---|---|")
    with AceStep(options.bundle, n_parallel=options.parallel, n_ctx=256 + options.max_tokens) as model:
        for name, sampling in SAMPLINGS.items():
            counts: Counter[str] = Counter()
            tokens, began = 0, perf_counter()
            for outcome in model.batch(asked(found, sampling, options.max_tokens)):
                counts[verdict(outcome.answer, found[outcome.index])] += 1
                tokens += outcome.answer.usage.completion_tokens if outcome.answer else 0
                if outcome.error is not None:
                    print(f"{found[outcome.index]}: {outcome.error}", file=sys.stderr)
            others = {key: n for key, n in counts.items() if key not in {"valid", "length"}}
            holds &= not others and counts["valid"] >= LEAST_COMPLETE * len(found)
            speed = tokens / (perf_counter() - began)
            cells = (name, len(found), counts["valid"], counts["length"], others or "", f"{speed:.1f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
