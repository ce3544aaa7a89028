"""Draw the pictures that come with a demo checkpoint, and write their questions.

python -m scripts.demo.pictures acestep_gguf/demo
python -m scripts.demo.pictures tests/checkpoints/sheets --sheets
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.demo.scenes import Picture, draw, random_chart, random_number, random_scene
from scripts.demo.sheets import GRIDS, Sheet, draw_sheet, number_questions, random_sheet


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


def example_sheets() -> dict[str, Sheet]:
    """A held-out sheet of each grid, by file name."""
    sheets = {}
    for grid in GRIDS:
        rows, columns = grid
        name = f"{rows}x{columns}.png"
        sheets[name] = random_sheet(_seed(name), held_out=True, grid=grid)
    return sheets


def write_examples(folder: Path) -> list[dict[str, str]]:
    asked = []
    for one in examples():
        image, _ = draw(one.picture, _seed(one.file), one.size, oversample=4)
        image.save(folder / "pictures" / one.file, quality=90)
        asked.append({"image": f"pictures/{one.file}", "question": one.question})
    return asked


def write_sheets(folder: Path) -> list[dict[str, str]]:
    """Every number is asked for, with the right answer."""
    asked = []
    for file, sheet in example_sheets().items():
        draw_sheet(sheet, _seed(file)).save(folder / "pictures" / file, optimize=True)
        asked += [
            {"image": f"pictures/{file}", "question": one.text, "answer": one.answer}
            for one in number_questions(sheet)
        ]
    return asked


def _seed(name: str) -> Random:
    return Random(f"held-out/pictures/{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the checkpoint folder")
    parser.add_argument("--sheets", action="store_true", help="of the checkpoint that reads sheets")
    arguments = parser.parse_args()
    folder = arguments.folder
    (folder / "pictures").mkdir(exist_ok=True)
    asked = write_sheets(folder) if arguments.sheets else write_examples(folder)
    (folder / "questions.json").write_text(json.dumps(asked, indent=2) + "\n")


if __name__ == "__main__":
    main()
