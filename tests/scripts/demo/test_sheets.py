"""Sheets: the tiles they get, what is asked about them, and that held-out numbers stay apart."""

from itertools import islice
from random import Random

import pytest

pytest.importorskip("matplotlib")  # for its fonts

from scripts.demo.questions import Question
from scripts.demo.scenes import PLACES, SIDE, Label, Object, Scene, is_reserved_number
from scripts.demo.sheets import (
    GRID_SHARE,
    GRIDS,
    PINPOINTS,
    SHEET_SKILLS,
    Sheet,
    draw_sheet,
    held_out_sheets,
    random_sheet,
    sheet_questions,
)

SQUARE = Scene("white", (Object("blue", "square", 4),))
SHEET = Sheet(
    (2, 2), (*(Label("gray", text, "red", "DejaVuSans", 20) for text in ("12", "CAT", "345")), SQUARE)
)


def answers(text: str) -> set[tuple[str, str]]:
    """Skill and answer of every question about SHEET that reads `text`."""
    asked = [one for seed in range(60) for one in sheet_questions(SHEET, Random(seed))]
    return {(one.skill, one.answer) for one in asked if one.text == text}


def test_every_grid_is_drawn_and_its_places_are_the_demo_checkpoints_words() -> None:
    assert GRID_SHARE.keys() == GRIDS.keys()
    assert sum(GRID_SHARE.values()) == pytest.approx(1)
    for (rows, columns), places in GRIDS.items():
        assert len(places) == rows * columns
        assert set(places) <= set(PLACES)


def test_the_pinpoints_are_those_of_llava_1_6_at_this_towers_size() -> None:
    published = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert sorted(PINPOINTS) == sorted(
        [height * SIDE // 336, width * SIDE // 336] for height, width in published
    )


def test_a_picture_is_asked_for_by_place_and_by_number() -> None:
    assert answers("What number is at the top left?") == {("numbers on sheets", "12")}
    assert answers("Read the number in the third picture.") == {("numbers on sheets", "345")}
    assert answers("Which word is at the top right?") == {("words on sheets", "CAT")}


def test_all_numbers_are_listed_in_reading_order() -> None:
    assert answers("List the numbers.") == {("all numbers of sheets", "12, 345")}


def test_nothing_is_asked_about_a_picture_without_text() -> None:
    asked = [one.text for seed in range(60) for one in sheet_questions(SHEET, Random(seed))]
    assert not [text for text in asked if "bottom right" in text or "fourth" in text]


def numbers(sheet: Sheet) -> list[int]:
    return [int(one.text) for one in sheet.pictures if isinstance(one, Label) and one.text.isdigit()]


def test_held_out_numbers_are_never_trained() -> None:
    rng = Random(1)
    for held_out in (False, True):
        found = [number for _ in range(200) for number in numbers(random_sheet(rng, held_out))]
        assert len(found) > 400
        assert all(is_reserved_number(number) == held_out for number in found)


@pytest.mark.parametrize("skill", SHEET_SKILLS)
def test_the_test_set_is_the_same_on_every_call(skill: str) -> None:
    first, second = list(held_out_sheets(skill, 5)), list(held_out_sheets(skill, 5))
    assert [one.question for one in first] == [one.question for one in second]
    assert [one.images[0].tobytes() for one in first] == [one.images[0].tobytes() for one in second]
    assert {one.question.skill for one in first} == {skill}
    assert len({one.question for one in first}) == 5


def test_questions_of_a_longer_test_set_begin_with_the_shorter_one() -> None:
    def texts(count: int) -> list[Question]:
        return [one.question for one in islice(held_out_sheets("numbers on sheets", count), 3)]

    assert texts(3) == texts(10)


@pytest.mark.parity
def test_a_sheet_gets_a_tile_for_each_picture_and_padding() -> None:
    """By transformers' own rule; of other tiles the edges would run through the numbers."""
    from transformers.image_processing_utils import select_best_resolution

    rng, padded = Random(2), 0
    for _ in range(300):
        sheet = random_sheet(rng)
        image = draw_sheet(sheet, rng)
        (rows, columns), (width, height) = sheet.grid, image.size
        best = select_best_resolution((height, width), PINPOINTS)
        assert list(best) == [rows * SIDE, columns * SIDE]
        padded += width * rows != height * columns
    assert padded > 100
