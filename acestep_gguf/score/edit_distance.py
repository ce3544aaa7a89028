"""Levenshtein's distance, a whole column of its table at a time in the bits of two integers."""

from collections import defaultdict
from collections.abc import Sequence


def edit_distance(first: str, second: str) -> int:
    """How many characters have to be put in, left out or replaced to make one text of the other.

    Hyyrö's form of Myers' algorithm: bit i of ``up`` says that the table grows by one from row i to the next,
    bit i of ``down`` that it falls. A few operations on len(first) bits for each character of ``second``.
    """
    if not first:
        return len(second)
    rows_of: defaultdict[str, int] = defaultdict(int)
    for row, character in enumerate(first):
        rows_of[character] |= 1 << row
    all_rows = (1 << len(first)) - 1
    last_row = 1 << (len(first) - 1)
    up, down, distance = all_rows, 0, len(first)
    for character in second:
        matches = rows_of.get(character, 0)
        diagonal = (((matches & up) + up) ^ up) | matches | down
        right_up = down | ~(diagonal | up)
        right_down = diagonal & up
        distance += bool(right_up & last_row) - bool(right_down & last_row)
        right_up = (right_up << 1) | 1
        right_down <<= 1
        up = (right_down | ~(diagonal | right_up)) & all_rows
        down = right_up & diagonal & all_rows
    return distance


def nearest(text: str, choices: Sequence[str]) -> int:
    """The place of the choice with the least distance to ``text``, of several the first."""
    return min(range(len(choices)), key=lambda place: edit_distance(choices[place], text))
