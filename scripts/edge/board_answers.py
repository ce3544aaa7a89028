"""What a bundle gives on this machine, as JSON lines that another machine's can be compared with.

    python -m scripts.edge.board_answers BUNDLE TASKS OUT

TASKS is a JSON file of texts to tokenize and of questions with their pictures. Needs the runtime alone, runs
on one thread, and carries on with an OUT that was left unfinished.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acestep_gguf import AceStep
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.llama.binding import Model
from acestep_gguf.vision.embeds import cosines
from acestep_gguf.vision.int8_check import reference_pixel_values, vision_precision
from acestep_gguf.vision.tower import VisionTower

Found = Iterator[tuple[str, Any]]


def tokens(folder: Path, bundle: Bundle, texts: list[str]) -> list[list[int]]:
    with Model(folder / bundle.decoder().file) as model:
        return [model.tokenize(text) for text in texts]


def tower(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Which tower the int8 check takes, and the worst token's cosine of int8 to float32 here."""
    _, image = bundle.tower()
    pixel_values = reference_pixel_values(image)
    exact, int8 = (
        VisionTower(folder, bundle, precision, n_threads=1).encode(pixel_values).embeds
        for precision in ("float32", "int8")
    )
    return {
        "taken": vision_precision(folder, bundle, n_threads=1),
        "least cosine": round(float(cosines(exact, int8).min()), 6),
    }


def answers(folder: Path, questions: list[dict[str, Any]]) -> Found:
    with AceStep(folder, n_threads=1) as model:
        for one in questions:
            answer = model.generate(one["question"], images=one["images"], temperature=0)
            yield one["name"], {"text": answer.text, "tokens": answer.tokens}


def everything(folder: Path, tasks: dict[str, Any], known: set[str]) -> Found:
    """Names and what was found, but for names that are known."""
    bundle = Bundle.read(folder)
    if "tokens" not in known:
        yield "tokens", tokens(folder, bundle, tasks["texts"])
    if "tower" not in known:
        yield "tower", tower(folder, bundle)
    yield from answers(folder, [one for one in tasks["questions"] if one["name"] not in known])


def read(path: Path) -> dict[str, Any]:
    """What a file of JSON lines has by name; a last line that was cut off does not count."""
    if not path.exists():
        return {}
    lines = path.read_text().split("\n")[:-1]
    return dict(json.loads(line) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    known = read(arguments.out)
    arguments.out.write_text("".join(json.dumps(pair) + "\n" for pair in known.items()))
    tasks = json.loads(arguments.tasks.read_text())
    with arguments.out.open("a") as out:
        for pair in everything(arguments.bundle, tasks, {*known}):
            out.write(json.dumps(pair) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
