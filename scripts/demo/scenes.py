"""Draw the small synthetic pictures that the demo checkpoint is trained and tested on.

A picture is a plain description (`Scene`, `Label` or `Chart`); `draw` turns it into pixels. What
the description leaves open (exact size and place) is jitter, taken from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SIDE = 112  # the vision tower's input; all coordinates below are in these units
PATCH = 14
GRID = SIDE // PATCH

RGB = tuple[int, int, int]
COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 215, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (130, 60, 180),
    "pink": (245, 130, 190),
    "brown": (125, 75, 35),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "gray": (200, 200, 200),
    "black": (24, 24, 24),
}
PAINTS = COLOURS | BACKGROUNDS
SHAPES = ("circle", "square", "triangle", "star")
PLACES = (  # the cells of the 3 x 3 grid, in reading order
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the center",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
FONT_SIZES = (20, 24)
INKS = {  # text colours that can be read on each background
    "white": ("black", "red", "blue", "green", "purple", "brown"),
    "gray": ("black", "red", "blue", "green", "purple", "brown"),
    "black": ("white", "yellow", "orange", "pink", "green", "red"),
}
WORDS = (
    "APPLE",
    "BIRD",
    "BOAT",
    "BOOK",
    "BREAD",
    "CAKE",
    "CAR",
    "CAT",
    "CHAIR",
    "CLOCK",
    "CLOUD",
    "COAT",
    "CUP",
    "DAY",
    "DOG",
    "DOOR",
    "DUCK",
    "EGG",
    "FARM",
    "FIRE",
    "FISH",
    "FOX",
    "FROG",
    "GAME",
    "GOAT",
    "GRASS",
    "HAND",
    "HAT",
    "HELLO",
    "HOME",
    "HORSE",
    "HOUSE",
    "JUMP",
    "KEY",
    "KING",
    "LAKE",
    "LAMP",
    "LEAF",
    "LION",
    "MILK",
    "MOON",
    "MOUSE",
    "NIGHT",
    "OPEN",
    "PARK",
    "PIANO",
    "PLANT",
    "QUEEN",
    "RAIN",
    "RIVER",
    "ROAD",
    "SHIP",
    "SNOW",
    "STOP",
    "SUN",
    "TABLE",
    "TRAIN",
    "TREE",
    "WATER",
    "WIND",
    "ZEBRA",
)
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_OBJECTS = 4
MIN_BARS, MAX_BARS = 3, 5
BAR_LEVELS, BAR_STEP = 8, 10.5  # a level is far more than the jitter, so heights differ visibly


@dataclass(frozen=True)
class Object:
    colour: str
    shape: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order; no two share a cell, or both colour and shape."""

    background: str
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Label:
    """A number or a word."""

    background: str
    text: str
    ink: str
    font: str
    font_size: int


@dataclass(frozen=True)
class Chart:
    """Bars from left to right, heights as levels 1 to BAR_LEVELS, all different."""

    background: str
    colours: tuple[str, ...]
    levels: tuple[int, ...]


Picture = Scene | Label | Chart


# ---- what is in a picture -----------------------------------------------------------------------


def is_reserved(thing: Object) -> bool:
    """One in eight combinations of colour, shape and cell is kept for the held-out pictures."""
    colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
    return (colour + 3 * shape + 5 * thing.cell) % 8 == 0


def is_reserved_number(number: int) -> bool:
    return number % 8 == 5


def random_scene(rng: Random, held_out: bool = False, least: int = 1) -> Scene:
    """A scene; held-out scenes have at least one reserved object, the others none."""
    while True:
        scene = _any_scene(rng, least)
        if any(is_reserved(thing) for thing in scene.objects) == held_out:
            return scene


def _any_scene(rng: Random, least: int) -> Scene:
    count = rng.randint(least, MAX_OBJECTS)
    colours, shapes = list(COLOURS), list(SHAPES)
    if rng.random() < 0.4:  # repeat a colour or a shape, or there would be little to count
        if rng.random() < 0.3:
            colours = rng.sample(colours, rng.randint(1, 2))
        else:
            shapes = rng.sample(shapes, rng.randint(1, 2))
    looks = [(colour, shape) for colour in colours for shape in shapes]
    cells = sorted(rng.sample(range(len(PLACES)), count))
    things = [Object(*look, cell) for look, cell in zip(rng.sample(looks, count), cells, strict=True)]
    return Scene(rng.choice(list(BACKGROUNDS)), tuple(things))


def random_number(rng: Random, held_out: bool = False) -> Label:
    while True:
        digits = rng.randint(2, 4)
        number = rng.randrange(10 ** (digits - 1), 10**digits)
        if is_reserved_number(number) == held_out:
            return _label(rng, str(number))


def random_word(rng: Random, _held_out: bool = False) -> Label:
    """A word of the closed list: held-out ones differ in drawing only."""
    return _label(rng, rng.choice(WORDS))


def _label(rng: Random, text: str) -> Label:
    background = rng.choice(list(BACKGROUNDS))
    ink = rng.choice(INKS[background])
    return Label(background, text, ink, rng.choice(FONTS), rng.choice(FONT_SIZES))


def random_chart(rng: Random, _held_out: bool = False) -> Chart:
    """Three to five bars: held-out charts are simply other draws."""
    count = rng.randint(MIN_BARS, MAX_BARS)
    colours = rng.sample(list(COLOURS), count)
    levels = rng.sample(range(1, BAR_LEVELS + 1), count)
    return Chart(rng.choice(list(BACKGROUNDS)), tuple(colours), tuple(levels))


# ---- from description to pixels -----------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """Where one drawn thing is and what it is: the source of the patch labels."""

    box: tuple[float, float, float, float]
    kind: str  # a shape, "bar" or "glyph"
    colour: str
    place: int  # cell of an object; index from left to right of a bar or a glyph
    rank: int = -1  # bars only: 0 is the tallest
    glyph: str = ""


KINDS = (*SHAPES, "bar", "glyph")


def draw(
    picture: Picture, rng: Random, size: tuple[int, int] = (SIDE, SIDE), oversample: int = 2
) -> tuple[Image.Image, list[Mark]]:
    """The picture at `size` (width, height), its content in the middle square."""
    width, height = (edge * oversample for edge in size)
    image = Image.new("RGB", (width, height), BACKGROUNDS[picture.background])
    pen = _Pen(image)
    if isinstance(picture, Scene):
        marks = _draw_scene(pen, picture, rng)
    elif isinstance(picture, Label):
        marks = _draw_label(pen, picture, rng)
    else:
        marks = _draw_chart(pen, picture, rng)
    return image.resize(size, Image.Resampling.BOX) if oversample > 1 else image, marks


class _Pen:
    """Draws in SIDE x SIDE units on the middle square of an image of any size."""

    def __init__(self, image: Image.Image) -> None:
        self.draw = ImageDraw.Draw(image)
        self.scale = min(image.size) / SIDE
        self.left = (image.width - min(image.size)) / 2
        self.top = (image.height - min(image.size)) / 2

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.left + x * self.scale, self.top + y * self.scale

    def polygon(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        self.draw.polygon([self.place(*point) for point in points], fill=PAINTS[colour])

    def circle(self, x: float, y: float, radius: float, colour: str) -> None:
        box = (self.place(x - radius, y - radius), self.place(x + radius, y + radius))
        self.draw.ellipse(box, fill=PAINTS[colour])

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        self.draw.rectangle((self.place(x0, y0), self.place(x1, y1)), fill=PAINTS[colour])

    def text(self, x: float, y: float, text: str, font: str, size: float, colour: str) -> None:
        face = _font(font, round(size * self.scale))
        self.draw.text(self.place(x, y), text, font=face, fill=PAINTS[colour], anchor="ls")


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def _draw_scene(pen: _Pen, scene: Scene, rng: Random) -> list[Mark]:
    marks = []
    for thing in scene.objects:
        row, column = divmod(thing.cell, 3)
        x = (column + 0.5) * SIDE / 3 + rng.uniform(-3, 3)
        y = (row + 0.5) * SIDE / 3 + rng.uniform(-3, 3)
        radius = rng.uniform(10.5, 15)
        _draw_object(pen, thing, x, y, radius)
        box = (x - radius, y - radius, x + radius, y + radius)
        marks.append(Mark(box, thing.shape, thing.colour, thing.cell))
    return marks


def _draw_object(pen: _Pen, thing: Object, x: float, y: float, radius: float) -> None:
    if thing.shape == "circle":
        pen.circle(x, y, radius, thing.colour)
    elif thing.shape == "square":
        half = 0.88 * radius
        pen.box(x - half, y - half, x + half, y + half, thing.colour)
    elif thing.shape == "triangle":
        corners = [(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)]
        pen.polygon(corners, thing.colour)
    else:
        radii = (1.08 * radius, 0.45 * radius)
        points = [
            (x + radii[i % 2] * math.sin(i * math.pi / 5), y - radii[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
        pen.polygon(points, thing.colour)


def _draw_label(pen: _Pen, label: Label, rng: Random) -> list[Mark]:
    size = label.font_size * rng.uniform(0.95, 1.05)
    face = _font(label.font, 100)  # measured large, so that hinting does not matter
    ends = [face.getlength(label.text[:i]) * size / 100 for i in range(len(label.text) + 1)]
    cap_height = 0.73 * size
    x = rng.uniform(4, SIDE - 4 - ends[-1])
    y = rng.uniform(4 + cap_height, SIDE - 4)
    pen.text(x, y, label.text, label.font, size, label.ink)
    return [
        Mark((x + ends[i], y - cap_height, x + ends[i + 1], y), "glyph", label.ink, i, glyph=glyph)
        for i, glyph in enumerate(label.text)
    ]


def _draw_chart(pen: _Pen, chart: Chart, rng: Random) -> list[Mark]:
    axis = "white" if chart.background == "black" else "black"
    left, floor = rng.uniform(8, 14), rng.uniform(100, 106)
    slot = (SIDE - 6 - left) / len(chart.colours)
    width = slot * rng.uniform(0.6, 0.8)
    by_height = sorted(chart.levels, reverse=True)
    marks = []
    for i, (colour, level) in enumerate(zip(chart.colours, chart.levels, strict=True)):
        x = left + (i + 0.5) * slot - width / 2
        y = floor - level * BAR_STEP - rng.uniform(-1.5, 1.5)
        pen.box(x, y, x + width, floor, colour)
        marks.append(Mark((x, y, x + width, floor), "bar", colour, i, by_height.index(level)))
    pen.box(left - 1, floor - BAR_STEP * BAR_LEVELS - 2, left, floor, axis)
    pen.box(left - 1, floor, SIDE - 5, floor + 1, axis)
    return marks
