"""The expectations are what the harnesses' own functions say (scripts/checks/score_harnesses.py)."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.score.letters import by_lmms_eval, by_vlmevalkit, first_character, most_credible

CHOICES = {"A": "a red circle", "B": "Blue square", "C": "banana", "D": "4"}


@pytest.mark.parametrize(
    ("answer", "vlmevalkit", "lmms_eval"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("(B)", "B", "B"),
        ("The answer is B.", "B", "B"),
        ("B because it is far away from all", None, "B"),  # VLMEvalKit: not among the last four words
        ("b", None, None),
        ("", None, None),
        ("A B", None, "A"),  # both count for lmms-eval, and a letter at the start the most
        ("A or B", None, "A"),
        ("Not B", "B", "B"),
        ("Z", "Z", None),
        ("E", None, "E"),  # a letter that no option has
        ("It is a blue square", "B", "B"),
        ("blue square or banana", None, None),
        ("The BANANA", "C", "C"),
        ("4", "D", "D"),
        ("A banana is what I can see here", "C", "C"),
        ("I can't process this file.", "Z", None),
        ("Failed to obtain answer via API", None, "A"),
        ("**C**", "C", "C"),
        ("C:", "C", "C"),
        ("option C)", "C", "C"),
        ("x" * 200 + " banana", None, "C"),  # VLMEvalKit: longer than twice the options
    ],
)
def test_answers(answer: str, vlmevalkit: str | None, lmms_eval: str | None) -> None:
    assert (by_vlmevalkit(answer, CHOICES), by_lmms_eval(answer, CHOICES)) == (vlmevalkit, lmms_eval)


def test_options_that_a_question_has_not_read_nan_for_lmms_eval() -> None:
    """As in its data set, so that two of these options are in the word."""
    assert by_vlmevalkit("the banana", {"A": "banana", "B": "kiwi"}) == "A"
    assert by_lmms_eval("the banana", {"A": "banana", "B": "kiwi"}) is None
    assert by_lmms_eval("the banana", CHOICES) == "C"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("", None),
        (" . ", None),
        ("(C)", "C"),
        ("A) no, B) yes", "A"),
        ("No: A) is not B) yes", "B"),
        ("First A. then B", "B"),
        ("the answer is D, not C.", "C"),
        ("I pick the one called C, D is wrong", "D"),
        ("BANANA", "A"),
        ("정답은 B", "B"),
        ("C!", "C"),
        ("'B'", "B"),
        ("x", None),
    ],
)
def test_the_most_credible_letter(answer: str, letter: str | None) -> None:
    assert most_credible(answer, CHOICES) == letter


@pytest.mark.parametrize(("answer", "letter"), [("", ""), (" b", "B"), ("Car", "C"), ("(A)", "(")])
def test_the_first_character(answer: str, letter: str) -> None:
    assert first_character(answer) == letter


@given(st.text() | st.text("ABCDEZ ().:,abn"))
def test_any_text_is_an_answer(answer: str) -> None:
    assert by_vlmevalkit(answer, CHOICES) in {*CHOICES, "Z", None}
    assert by_lmms_eval(answer, CHOICES) in {*CHOICES, "E", None}


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "{}.", "({})", "{})", "The answer is {}.", "Answer: {}"])
)
def test_a_plain_letter_is_understood_by_both(letter: str, form: str) -> None:
    assert by_vlmevalkit(form.format(letter), CHOICES) == by_lmms_eval(form.format(letter), CHOICES) == letter


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "{}.", "It is {}", "It's {}!"]))
def test_the_text_of_an_option_is_understood_by_both(letter: str, form: str) -> None:
    answer = form.format(CHOICES[letter])
    assert by_vlmevalkit(answer, CHOICES) == by_lmms_eval(answer, CHOICES) == letter


@pytest.mark.parametrize("text", ["A ", "(", "the answer is ", "İ", "B)."])
def test_long_answers_take_no_long_time(text: str) -> None:
    began = time.process_time()
    by_vlmevalkit(text * 50_000, CHOICES)
    by_lmms_eval(text * 50_000, CHOICES)
    assert time.process_time() - began < 20
