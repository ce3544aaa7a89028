"""The expectations are what the harnesses' own functions say (scripts/checks/score_harnesses.py)."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.score.yes_no import by_lmms_eval, by_official_tool, by_vlmevalkit

RULES = (by_vlmevalkit, by_lmms_eval, by_official_tool)


@pytest.mark.parametrize(
    ("answer", "vlmevalkit", "lmms_eval", "official"),
    [
        ("Yes", "Yes", "Yes", "Yes"),
        ("no.", "No", "No", "No"),
        ("NO", "No", "No", "No"),
        ("", None, None, None),
        ("y", None, "Yes", None),
        ("N", None, "No", None),
        ("Y.", None, "Yes", None),
        ("Yes, it is not.", "Yes", "Yes", "Yes"),
        ("Yes or no", None, "Yes", "Yes"),
        ("yesno", None, "Yes", "Yes"),
        ("nothing", None, "No", "No"),
        ("Not really", None, "No", "No"),
        ("I know", None, None, None),
        ("know", None, "No", "No"),
        ("The answer is yes", "Yes", None, None),
        (" yes", "Yes", "Yes", "Yes"),
        ("   no", "No", "No", None),
        ("...no", "No", "No", None),
        ("yes/no", None, "Yes", "Yes"),
        ("(yes)", "Yes", "Yes", "Yes"),
        ("1,000 (yes)", "Yes", None, None),
        ("yes-no -", None, "Yes", "Yes"),
        ("da. yes", "Yes", None, None),
        ("да", None, None, None),
    ],
)
def test_answers(answer: str, vlmevalkit: str | None, lmms_eval: str | None, official: str | None) -> None:
    assert [rule(answer) for rule in RULES] == [vlmevalkit, lmms_eval, official]


@given(st.text(), st.sampled_from(RULES))
def test_any_text_is_an_answer(answer: str, rule: object) -> None:
    assert rule(answer) in {"Yes", "No", None}  # type: ignore[operator]


@given(st.text("\t xz.!?,"))
def test_neither_word_is_neither(answer: str) -> None:
    assert [rule(answer) for rule in RULES] == [None, None, None]


@given(st.sampled_from(["yes", "Yes", "YES", "no", "No"]), st.sampled_from(["", ".", " .", "!", ", it is"]))
def test_a_plain_word_is_understood_by_all(word: str, rest: str) -> None:
    assert [rule(word + rest) for rule in RULES] == [word.capitalize()] * 3


@pytest.mark.parametrize(
    "text", ["1,", "9" * 3 + ".", "- ", "yes no ", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"]
)
def test_long_answers_take_no_long_time(text: str) -> None:
    began = time.process_time()
    for rule in RULES:
        rule(text * 200_000)
    assert time.process_time() - began < 20  # a regular expression that goes back would take hours
