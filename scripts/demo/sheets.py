"""Sheets of several demo pictures, for a model that cuts a picture into tiles.

A sheet is a grid of two to four pictures, most of them numbers. Scaled to the 112 pixels that the
vision tower sees, a whole sheet is too small to read; cut into one tile a picture, it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image

from scripts.demo.questions import SINGLES, HeldOut, Question
from scripts.demo.scenes import BACKGROUNDS, SIDE, Label, Picture, draw

Grid = tuple[int, int]  # rows, columns
GRIDS: dict[Grid, tuple[str, ...]] = {  # the places of the pictures, in reading order
    (1, 2): ("on the left", "on the right"),
    (2, 1): ("at the top", "at the bottom"),
    (2, 2): ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
    (3, 1): ("at the top", "in the center", "at the bottom"),
    (1, 3): ("on the left", "in the center", "on the right"),
}
PINPOINTS = [[rows * SIDE, columns * SIDE] for rows, columns in GRIDS]  # LLaVA-1.6's, at this tower's size
GRID_SHARE = {(2, 2): 0.4, (1, 2): 0.15, (2, 1): 0.15, (3, 1): 0.15, (1, 3): 0.15}
CELL_SHARE = {"number": 0.75, "word": 0.15, "scene": 0.05, "chart": 0.05}
LARGEST_CELL = 2 * SIDE  # pixels
WIDEST = 1.18  # side by side of a picture's cell; beyond, scaled glyphs are smaller than the tower knows
LEAST_ENLARGED = 88  # pixels: smaller ones would be enlarged to coarse glyphs

SHEET_SKILLS = ("numbers on sheets", "words on sheets", "all numbers of sheets")
ORDINALS = ("first", "second", "third", "fourth")
READ_AT = ("What {} is {}?", "Which {} is {}?", "Read the {} {}.", "What is the {} {}?")
READ_IN = (
    "What {} does the {} picture show?",
    "What {} is in the {} picture?",
    "Which {} do you see in the {} picture?",
    "Read the {} in the {} picture.",
)
READ_ALL = ("List the numbers.", "Read all numbers.", "What numbers are shown?", "Which numbers do you see?")


@dataclass(frozen=True)
class Sheet:
    """Pictures in reading order."""

    grid: Grid
    pictures: tuple[Picture, ...]


def random_sheet(rng: Random, held_out: bool = False, grid: Grid | None = None) -> Sheet:
    """A sheet with at least one number; those of held-out sheets were never trained on."""
    grid = grid or rng.choices(list(GRID_SHARE), list(GRID_SHARE.values()))[0]
    count = len(GRIDS[grid])
    kinds = rng.choices(list(CELL_SHARE), list(CELL_SHARE.values()), k=count)
    kinds[rng.randrange(count)] = "number"
    return Sheet(grid, tuple(SINGLES[kind](rng, held_out) for kind in kinds))


def draw_sheet(sheet: Sheet, rng: Random) -> Image.Image:
    """The sheet in pixels, of a size that the processor cuts into one tile a picture."""
    rows, columns = sheet.grid
    width, height = _cell_size(sheet.grid, rng)
    image = Image.new("RGB", (columns * width, rows * height), BACKGROUNDS["white"])
    for number, picture in enumerate(sheet.pictures):
        row, column = divmod(number, columns)
        cell, _ = draw(picture, rng, (width, height), rng.choice((1, 2)))
        image.paste(cell, (column * width, row * height))
    return image


def _cell_size(grid: Grid, rng: Random) -> tuple[int, int]:
    """Any size, but a large sheet of two pictures is twice as long as wide.

    In another shape it would get the tiles of a longer or a square sheet, which cut through glyphs.
    """
    if len(GRIDS[grid]) == 2:
        if rng.random() < 0.5:
            return rng.randint(LEAST_ENLARGED, SIDE), rng.randint(LEAST_ENLARGED, SIDE)
        side = rng.randint(SIDE, LARGEST_CELL)
        return side, side
    side = rng.randint(SIDE, LARGEST_CELL)
    longer = round(side * rng.uniform(1, WIDEST))
    return (side, longer) if rng.random() < 0.5 else (longer, side)


def number_questions(sheet: Sheet) -> list[Question]:
    """Every number asked for once, by its place."""
    return [
        Question("numbers on sheets", f"What number is {place}?", picture.text)
        for picture, place in zip(sheet.pictures, GRIDS[sheet.grid], strict=True)
        if isinstance(picture, Label) and picture.text.isdigit()
    ]


def sheet_questions(sheet: Sheet, rng: Random) -> list[Question]:
    """What can be read, each asked by place and by number in reading order."""
    found = []
    for picture, place, ordinal in zip(sheet.pictures, GRIDS[sheet.grid], ORDINALS, strict=False):
        if isinstance(picture, Label):
            kind = "number" if picture.text.isdigit() else "word"
            for text in (
                rng.choice(READ_AT).format(kind, place),
                rng.choice(READ_IN).format(kind, ordinal),
            ):
                found.append(Question(f"{kind}s on sheets", text, picture.text))
    numbers = [one.text for one in sheet.pictures if isinstance(one, Label) and one.text.isdigit()]
    found.append(Question("all numbers of sheets", rng.choice(READ_ALL), ", ".join(numbers)))
    return found


def held_out_sheets(skill: str, count: int) -> Iterator[HeldOut]:
    """The first `count` test questions of a skill of SHEET_SKILLS, the same on every call."""
    for number in range(count):
        rng = Random(f"held-out/{skill}/{number}")
        asked: list[Question] = []
        while not asked:
            sheet = random_sheet(rng, held_out=True)
            asked = [one for one in sheet_questions(sheet, rng) if one.skill == skill]
        yield HeldOut(rng.choice(asked), (draw_sheet(sheet, rng),))
