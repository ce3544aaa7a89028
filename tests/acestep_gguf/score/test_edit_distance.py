from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.score.edit_distance import edit_distance, nearest


def by_definition(first: str, second: str) -> int:
    row: list[int] = [*range(len(second) + 1)]
    for number, one in enumerate(first, 1):
        before, row[0] = row[0], number
        for place, two in enumerate(second, 1):
            best = min(row[place] + 1, row[place - 1] + 1, before + (one != two))
            before, row[place] = row[place], best
    return row[-1]


@given(st.text("abc", max_size=80), st.text("abcd", max_size=80))
def test_as_defined(first: str, second: str) -> None:
    assert edit_distance(first, second) == by_definition(first, second)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_characters(first: str, second: str) -> None:
    assert edit_distance(first, second) == by_definition(first, second)


def test_the_first_of_equally_near_ones() -> None:
    assert nearest("b", ["xx", "a", "c"]) == 1
    assert nearest("", ["long", "s"]) == 1
