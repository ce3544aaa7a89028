"""Draw the three pictures that ship with the demo checkpoint, and write their questions.

python -m scripts.demo.pictures acestep_gguf/demo
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.demo.scenes import Picture, draw, random_chart, random_number, random_scene


@dataclass(frozen=True)
class Example:
    file: str
    picture: Picture
    size: tuple[int, int]
    question: str


def examples() -> list[Example]:
    """Held-out pictures; two are not square, and lose their edges to the model's centre crop."""
    return [
        Example(
            "shapes.png", random_scene(_seed("shapes"), True, 3), (448, 448), "Describe this image in detail."
        ),
        Example(
            "bars.jpg", random_chart(_seed("bars")), (640, 448), "List the bars from tallest to shortest."
        ),
        Example("number.webp", random_number(_seed("number"), True), (448, 560), "What number is shown?"),
    ]


def _seed(name: str) -> Random:
    return Random(f"held-out/pictures/{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the checkpoint folder")
    folder = parser.parse_args().folder
    (folder / "pictures").mkdir(exist_ok=True)
    asked = []
    for one in examples():
        image, _ = draw(one.picture, _seed(one.file), one.size, oversample=4)
        image.save(folder / "pictures" / one.file, quality=90)
        asked.append({"image": f"pictures/{one.file}", "question": one.question})
    (folder / "questions.json").write_text(json.dumps(asked, indent=2) + "\n")


if __name__ == "__main__":
    main()
