"""The generator: what it draws, what it asks, and that held-out pictures stay apart."""

import re
from random import Random

import pytest

pytest.importorskip("matplotlib")  # for its fonts

from scripts.demo.labels import IGNORE, LABEL_SIZES, cell_labels, patch_labels
from scripts.demo.questions import (
    SAME,
    SINGLES,
    SKILLS,
    describe,
    held_out_questions,
    questions,
    random_pair,
)
from scripts.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    FONT_SIZES,
    FONTS,
    GRID,
    KINDS,
    PAINTS,
    PLACES,
    SHAPES,
    SIDE,
    WORDS,
    Chart,
    Label,
    Object,
    Picture,
    Scene,
    draw,
    is_reserved,
    random_number,
    random_scene,
)

RED_CIRCLE = Object("red", "circle", 0)
BLUE_SQUARE = Object("blue", "square", 4)
SCENE = Scene("white", (RED_CIRCLE, BLUE_SQUARE))
CHART = Chart("white", ("red", "blue", "green"), (3, 8, 5))


def answers(picture: Picture, text: str, rounds: int = 60) -> set[str]:
    """All answers that a picture's questions give to `text`."""
    asked = [one for seed in range(rounds) for one in questions(picture, Random(seed))]
    return {one.answer for one in asked if one.text == text}


def test_there_is_enough_to_draw() -> None:
    assert len(COLOURS) == 8
    assert len(SHAPES) == 4
    assert len(PLACES) == 9
    assert len(BACKGROUNDS) == 3
    assert len(FONTS) * len(FONT_SIZES) == 8
    assert len(set(WORDS)) >= 60


@pytest.mark.parametrize("kind", SINGLES)
def test_the_same_seed_draws_the_same_picture(kind: str) -> None:
    first, second = (draw(SINGLES[kind](rng, False), rng)[0] for rng in (Random(7), Random(7)))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(("size", "middle"), [((112, 112), (56, 56)), ((448, 336), (224, 168))])
def test_content_is_in_the_middle_square_of_any_size(size: tuple[int, int], middle: tuple[int, int]) -> None:
    image, _ = draw(SCENE, Random(0), size)
    assert image.size == size
    assert image.getpixel(middle) == COLOURS["blue"]
    assert image.getpixel((0, 0)) == BACKGROUNDS["white"]


@pytest.mark.parametrize("kind", SINGLES)
def test_everything_drawn_is_inside_the_picture(kind: str) -> None:
    for seed in range(200):
        rng = Random(seed)
        _, marks = draw(SINGLES[kind](rng, False), rng)
        for mark in marks:
            assert min(mark.box) >= 0, mark
            assert max(mark.box) <= SIDE, mark


def test_one_combination_in_eight_is_reserved_and_only_held_out_scenes_have_them() -> None:
    things = [Object(colour, shape, cell) for colour in COLOURS for shape in SHAPES for cell in range(9)]
    assert sum(map(is_reserved, things)) == len(things) // 8
    for seed in range(300):
        for held_out in (False, True):
            scene = random_scene(Random(seed), held_out)
            assert any(map(is_reserved, scene.objects)) == held_out
        first, second, _ = random_pair(Random(seed))
        assert not any(map(is_reserved, first.objects + second.objects))
        first, _, _ = random_pair(Random(seed), held_out=True)
        assert any(map(is_reserved, first.objects))


def test_held_out_numbers_are_never_trained_on() -> None:
    known = {random_number(Random(seed)).text for seed in range(500)}
    held_out = {random_number(Random(seed), held_out=True).text for seed in range(500)}
    assert not known & held_out
    assert {len(text) for text in known} == {len(text) for text in held_out} == {2, 3, 4}


def test_descriptions_are_in_reading_order() -> None:
    assert describe(SCENE) == (
        "A red circle at the top left and a blue square in the center on a white background."
    )
    assert describe(Scene("gray", (Object("orange", "star", 8),))) == (
        "An orange star at the bottom right on a gray background."
    )
    assert (
        describe(Label("black", "482", "red", FONTS[0], 20)) == "The number 482 in red on a black background."
    )
    assert describe(CHART) == "A bar chart with red, blue and green bars on a white background."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("How many objects are there?", "2"),
        ("How many circles are there?", "1"),
        ("What colour is the circle?", "red"),
        ("What shape is the blue object?", "square"),
        ("Where is the red circle?", "at the top left"),
        ("What is in the center?", "a blue square"),
        ("What is left of the blue square?", "a red circle"),
        ("Is the red circle above the blue square?", "yes"),
        ("Is the red circle below the blue square?", "no"),
    ],
)
def test_questions_about_a_scene_have_one_right_answer(text: str, answer: str) -> None:
    assert answers(SCENE, text, rounds=400) == {answer}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Which bar is tallest?", "blue"),
        ("Which bar is shortest?", "red"),
        ("List the bars from tallest to shortest.", "blue, green, red"),
        ("List the bars from left to right.", "red, blue, green"),
        ("How many bars are there?", "3"),
    ],
)
def test_questions_about_a_chart_have_one_right_answer(text: str, answer: str) -> None:
    assert answers(CHART, text) == {answer}


def test_no_question_has_two_answers() -> None:
    for kind, make in SINGLES.items():
        for seed in range(200):
            rng = Random(f"{kind}{seed}")
            found: dict[str, str] = {}
            for one in questions(make(rng, False), rng):
                assert found.setdefault(one.text, one.answer) == one.answer


def test_what_differs_between_two_pictures_is_named() -> None:
    said = [random_pair(Random(seed)) for seed in range(400)]
    same = [answer for _, _, answer in said if answer == SAME]
    assert 0.4 < len(same) / len(said) < 0.6
    for first, second, answer in said:
        assert (first == second) == (answer == SAME)
        if answer != SAME:
            changed = set(first.objects) - set(second.objects)
            assert len(changed) == 1
            (one,) = changed
            assert answer.startswith(f"The {one.name} {PLACES[one.cell]} ")
            assert re.search(r"(becomes [\w ]+|moves; it is now [\w ]+|is missing)\.$", answer)


def test_patch_labels_name_what_is_drawn_there() -> None:
    _, marks = draw(SCENE, Random(0))
    labels = patch_labels(marks).reshape(GRID, GRID, 2, len(LABEL_SIZES))
    kind, colour, place, rank, glyph = labels[4, 4, 0]
    assert (kind, colour, place) == (KINDS.index("square") + 1, list(PAINTS).index("blue"), 4)
    assert rank == glyph == IGNORE
    assert labels[0, 7, 1].tolist() == [0, *[IGNORE] * 4]


def test_cell_labels_cover_the_cell() -> None:
    labels = cell_labels(SCENE).reshape(GRID, GRID, 2)
    red, blue = (list(COLOURS).index(name) for name in ("red", "blue"))
    assert labels[0, 0].tolist() == labels[2, 2].tolist() == [SHAPES.index("circle") + 1, red]
    assert labels[4, 4].tolist() == [SHAPES.index("square") + 1, blue]
    assert labels[7, 7].tolist() == [0, IGNORE]


@pytest.mark.parametrize("skill", SKILLS)
def test_the_test_set_is_the_same_on_every_call(skill: str) -> None:
    first, second = (list(held_out_questions(skill, 20)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert one.question == two.question
        assert one.question.skill == skill
        assert len(one.images) == (2 if skill == "comparison" else 1)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]
