"""Questions about the synthetic pictures, each with its one canonical answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from scripts.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    WORDS,
    Chart,
    Label,
    Picture,
    Scene,
    draw,
    is_reserved,
    random_chart,
    random_number,
    random_scene,
    random_word,
)

SKILLS = (
    "numbers",
    "words",
    "counting",
    "bars",
    "colour",
    "shape",
    "place",
    "comparison",
    "description",
)


@dataclass(frozen=True)
class Question:
    skill: str
    text: str
    answer: str


@dataclass(frozen=True)
class HeldOut:
    """One question of the test set with its pictures."""

    question: Question
    images: tuple[Image.Image, ...]


DESCRIBE = (
    "Describe the picture.",
    "Describe the picture in detail.",
    "Describe this picture.",
    "Describe the image.",
    "Describe this image.",
    "Describe this image in detail.",
    "Describe what you see.",
    "What is this?",
    "What is in the picture?",
    "What is in this image?",
    "What is shown here?",
    "What do you see?",
    "What does the picture show?",
)
COUNT_ALL = (
    "How many objects are there?",
    "How many objects are in the picture?",
    "How many shapes are there?",
    "How many things do you see?",
    "Count the objects.",
)
COUNT_SOME = (
    "How many {} are there?",
    "How many {} are in the picture?",
    "How many {} do you see?",
    "Count the {}.",
)
COUNT_BARS = (*COUNT_SOME, "How many {} does the chart have?")
COLOUR_OF = (
    "What colour is the {}?",
    "What color is the {}?",
    "Which colour is the {}?",
    "What is the colour of the {}?",
    "What is the color of the {}?",
)
SHAPE_OF = (
    "What shape is the {}?",
    "Which shape is the {}?",
    "What is the shape of the {}?",
)
WHERE = ("Where is the {}?", "In what place is the {}?", "What is the position of the {}?")
WHAT_IS_AT = ("What is {}?", "What do you see {}?", "Which object is {}?")
NUMBER = (
    "What number is shown?",
    "What number is this?",
    "What is the number?",
    "Which number do you see?",
    "Read the number.",
)
WORD = (
    "What word is shown?",
    "What word is this?",
    "What is the word?",
    "Which word do you see?",
    "Read the word.",
)
READ = (
    "What does it say?",
    "What does the picture say?",
    "What is written here?",
    "Read the text.",
    "What text is shown?",
)
TALLEST = ("Which bar is {}?", "Which bar is the {}?", "What is the {} bar?", "Name the {} bar.")
BAR_COLOUR = ("What colour is the {} bar?", "What color is the {} bar?")
ORDER = (
    "List the bars {}.",
    "Name the bars {}.",
    "What is the order of the bars {}?",
    "What are the colours of the bars {}?",
)
COMPARE = (
    "Compare the two pictures.",
    "Compare the pictures.",
    "Compare these two images.",
    "Compare the images.",
    "What changed?",
    "What is different in the second picture?",
    "What is the difference between the two pictures?",
    "Are the two pictures the same?",
    "Are the pictures the same or different?",
)
DESCRIBE_ONE = ("Describe the {} picture.", "Describe the {} image.", "What is in the {} picture?")
# direction -> does the second of two cells (row, column) lie there, seen from the first
Cell = tuple[int, int]
DIRECTIONS: dict[str, Callable[[Cell, Cell], bool]] = {
    "left of": lambda here, there: there[1] < here[1],
    "right of": lambda here, there: there[1] > here[1],
    "above": lambda here, there: there[0] < here[0],
    "below": lambda here, there: there[0] > here[0],
}
SAME = "They are the same."


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe(picture: Picture) -> str:
    if isinstance(picture, Scene):
        what = _and([f"{with_article(one.name)} {PLACES[one.cell]}" for one in picture.objects])
    elif isinstance(picture, Label):
        kind = "number" if picture.text.isdigit() else "word"
        what = f"the {kind} {picture.text} in {picture.ink}"
    else:
        what = f"a bar chart with {_and(picture.colours)} bars"
    return _sentence(f"{what} on a {picture.background} background")


def questions(picture: Picture, rng: Random) -> list[Question]:
    """Everything that can be asked about the picture, each in one phrasing."""
    found = [Question("description", rng.choice(DESCRIBE), describe(picture))]
    if isinstance(picture, Scene):
        found += [*_counts(picture, rng), *_colours(picture, rng), *_shapes(picture, rng)]
        found += _places(picture, rng)
    elif isinstance(picture, Label):
        found += _reading(picture, rng)
    else:
        found += _bars(picture, rng)
    return found


def _counts(scene: Scene, rng: Random) -> Iterator[Question]:
    yield Question("counting", rng.choice(COUNT_ALL), str(len(scene.objects)))
    shown = rng.choice(scene.objects)
    for shape in dict.fromkeys((shown.shape, rng.choice(SHAPES))):
        count = sum(one.shape == shape for one in scene.objects)
        yield Question("counting", rng.choice(COUNT_SOME).format(f"{shape}s"), str(count))
    for colour in dict.fromkeys((shown.colour, rng.choice(list(COLOURS)))):
        count = sum(one.colour == colour for one in scene.objects)
        yield Question("counting", rng.choice(COUNT_SOME).format(f"{colour} objects"), str(count))


def _colours(scene: Scene, rng: Random) -> Iterator[Question]:
    yield Question("colour", rng.choice(COLOUR_OF).format("background"), scene.background)
    for one in scene.objects:
        names = [f"object {PLACES[one.cell]}", f"{one.shape} {PLACES[one.cell]}"]
        if sum(other.shape == one.shape for other in scene.objects) == 1:
            names = [*names, one.shape, one.shape]
        yield Question("colour", rng.choice(COLOUR_OF).format(rng.choice(names)), one.colour)


def _shapes(scene: Scene, rng: Random) -> Iterator[Question]:
    for one in scene.objects:
        names = [f"object {PLACES[one.cell]}", f"{one.colour} object {PLACES[one.cell]}"]
        if sum(other.colour == one.colour for other in scene.objects) == 1:
            names = [*names, f"{one.colour} object", f"{one.colour} object"]
        yield Question("shape", rng.choice(SHAPE_OF).format(rng.choice(names)), one.shape)


def _places(scene: Scene, rng: Random) -> Iterator[Question]:
    for one in scene.objects:
        yield Question("place", rng.choice(WHERE).format(one.name), PLACES[one.cell])
    by_cell = {one.cell: with_article(one.name) for one in scene.objects}
    for cell in dict.fromkeys((rng.choice(scene.objects).cell, rng.randrange(len(PLACES)))):
        text = rng.choice(WHAT_IS_AT).format(PLACES[cell])
        yield Question("place", text, by_cell.get(cell, "nothing"))
    yield from _relations(scene, rng)


def _relations(scene: Scene, rng: Random) -> Iterator[Question]:
    """What lies in a direction, where that is one object at most; and yes-or-no questions."""
    one = rng.choice(scene.objects)
    here = divmod(one.cell, 3)
    for direction, lies_there in DIRECTIONS.items():
        others = [two for two in scene.objects if lies_there(here, divmod(two.cell, 3))]
        if len(others) <= 1 and (others or rng.random() < 0.25):
            text = rng.choice(WHAT_IS_AT).format(f"{direction} the {one.name}")
            answer = with_article(others[0].name) if others else "nothing"
            yield Question("place", text, answer)
    others = [two for two in scene.objects if two != one]
    if others:
        two = rng.choice(others)
        direction, lies_there = rng.choice(list(DIRECTIONS.items()))
        answer = "yes" if lies_there(divmod(two.cell, 3), here) else "no"
        yield Question("place", f"Is the {one.name} {direction} the {two.name}?", answer)


def _reading(label: Label, rng: Random) -> Iterator[Question]:
    skill, asked = ("numbers", NUMBER) if label.text.isdigit() else ("words", WORD)
    yield Question(skill, rng.choice(asked), label.text)
    yield Question(skill, rng.choice(READ), label.text)
    thing = rng.choice((skill[:-1], "text"))
    yield Question("colour", rng.choice(COLOUR_OF).format(thing), label.ink)
    yield Question("colour", rng.choice(COLOUR_OF).format("background"), label.background)


def _bars(chart: Chart, rng: Random) -> Iterator[Question]:
    tallest_first = [
        colour for _, colour in sorted(zip(chart.levels, chart.colours, strict=True), reverse=True)
    ]
    yield Question("counting", rng.choice(COUNT_BARS).format("bars"), str(len(chart.colours)))
    yield Question("colour", rng.choice(COLOUR_OF).format("background"), chart.background)
    for word, colour in (("tallest", tallest_first[0]), ("shortest", tallest_first[-1])):
        yield Question("bars", rng.choice(TALLEST + BAR_COLOUR).format(word), colour)
    for order, colours in (
        ("from tallest to shortest", tallest_first),
        ("from shortest to tallest", tallest_first[::-1]),
        ("from left to right", chart.colours),
    ):
        yield Question("bars", rng.choice(ORDER).format(order), ", ".join(colours))


# ---- two pictures -------------------------------------------------------------------------------


def random_pair(rng: Random, held_out: bool = False) -> tuple[Scene, Scene, str]:
    """Two scenes and how they compare.

    "The same" means the same background and objects in the same cells; exact size and place inside
    a cell are drawn anew for each picture. Half of the pairs are the same.
    """
    same = rng.random() < 0.5
    while True:
        first = random_scene(rng, held_out)
        if same:
            return first, first, SAME
        second, answer = _change(first, rng)
        reserved = any(is_reserved(one) for one in second.objects)
        if second.objects and _looks_differ(second) and (held_out or not reserved):
            return first, second, answer


def _change(scene: Scene, rng: Random) -> tuple[Scene, str]:
    one = rng.choice(scene.objects)
    others = [two for two in scene.objects if two != one]
    who = f"the {one.name} {PLACES[one.cell]}"
    what = rng.choice(("colour", "shape", "place", "missing"))
    if what == "missing":
        return replace(scene, objects=tuple(others)), _sentence(f"{who} is missing")
    if what == "colour":
        new = replace(one, colour=rng.choice([name for name in COLOURS if name != one.colour]))
        answer = f"{who} becomes {new.colour}"
    elif what == "shape":
        new = replace(one, shape=rng.choice([name for name in SHAPES if name != one.shape]))
        answer = f"{who} becomes {with_article(new.shape)}"
    else:
        taken = {two.cell for two in scene.objects}
        new = replace(one, cell=rng.choice([i for i in range(len(PLACES)) if i not in taken]))
        answer = f"{who} moves; it is now {PLACES[new.cell]}"
    objects = sorted([*others, new], key=lambda thing: thing.cell)
    return replace(scene, objects=tuple(objects)), _sentence(answer)


def _looks_differ(scene: Scene) -> bool:
    return len({one.name for one in scene.objects}) == len(scene.objects)


def pair_questions(first: Scene, second: Scene, answer: str, rng: Random) -> list[Question]:
    found = [Question("comparison", text, answer) for text in rng.sample(COMPARE, 3)]
    for which, scene in (("first", first), ("second", second)):
        text = rng.choice(DESCRIBE_ONE).format(which)
        found.append(Question("description", text, describe(scene)))
    return found


# ---- the test set -------------------------------------------------------------------------------

SINGLES: dict[str, Callable[[Random, bool], Picture]] = {
    "scene": random_scene,
    "number": random_number,
    "word": random_word,
    "chart": random_chart,
}
SOURCES = {"numbers": "number", "words": "word", "bars": "chart"}  # the other skills use scenes


def held_out_questions(skill: str, count: int) -> Iterator[HeldOut]:
    """The first `count` test questions of a skill, the same on every call."""
    for number in range(count):
        yield _drawn(skill, Random(f"held-out/{skill}/{number}"), held_out=True)


def calibration_questions(skill: str, count: int) -> Iterator[HeldOut]:
    """Questions of the same kinds about none of the things that are kept for tests."""
    for number in range(count):
        yield _drawn(skill, Random(f"calibration/{skill}/{number}"), held_out=False)


def _drawn(skill: str, rng: Random, *, held_out: bool) -> HeldOut:
    return (_pair if skill == "comparison" else _single)(skill, rng, held_out)


def _pair(_skill: str, rng: Random, held_out: bool) -> HeldOut:
    first, second, answer = random_pair(rng, held_out=held_out)
    images = tuple(draw(scene, rng)[0] for scene in (first, second))
    return HeldOut(pair_questions(first, second, answer, rng)[0], images)


def _single(skill: str, rng: Random, held_out: bool) -> HeldOut:
    while True:
        picture = SINGLES[SOURCES.get(skill, "scene")](rng, held_out)
        asked = [one for one in questions(picture, rng) if one.skill == skill]
        if asked:
            return HeldOut(rng.choice(asked), (draw(picture, rng)[0],))


def corpus() -> Iterator[str]:
    """All words that questions and answers are made of, for the tokenizer."""
    rng = Random("tokenizer")
    for _ in range(300):
        for kind in SINGLES.values():
            for one in questions(kind(rng, False), rng):
                yield f"{one.text}\n{one.answer}"
        for one in pair_questions(*random_pair(rng), rng):
            yield f"{one.text}\n{one.answer}"
    for word in (*WORDS, *COLOURS, *BACKGROUNDS, *SHAPES):
        yield f"{word} {word}"
