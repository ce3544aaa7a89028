import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import Item
from acestep_gguf.score.mathvista import lmms_eval_prompt, query_prompt, read, score
from acestep_gguf.score.mathvista_rules import by_lmms_eval, by_own_rules, by_vlmevalkit, extract
from tests.support.benchmark_files import encoded, item, png, write_tsv

OPTIONS = ("3/11", "8/11", "6/11", "3/5")


def choice(answer: str = "8/11") -> Item:
    return item(answer, choices=OPTIONS, question_type="multi_choice", answer_type="text")


def number(answer: str, kind: str = "integer", precision: int | None = None) -> Item:
    given = {} if precision is None else {"precision": str(precision)}
    return item(answer, question_type="free_form", answer_type=kind, **given)


@pytest.mark.parametrize(
    ("problem", "answer", "own", "vlmevalkit", "lmms_eval"),
    [
        (choice(), "B", True, True, None),
        (choice(), "8/11", True, True, True),
        (choice(), "(b)", True, None, None),
        (choice(), "The answer is (B) 8/11", True, True, None),
        (choice(), "A", False, False, None),
        (choice(), "8/12", True, None, None),  # the nearest
        (choice(), "", False, None, False),  # the shortest is nearest to nothing
        (choice("3/5"), "", True, None, True),
        (number("14"), "14", True, True, True),
        (number("14"), " 14\n", True, True, True),
        (number("14"), "14.0", True, None, None),
        (number("14"), "It is 14 cm.", True, None, None),
        (number("14"), "12 + 2 = 14", True, None, None),
        (number("14"), "15", False, None, False),
        (number("1234"), "1,234 kg", True, None, None),
        (number("0"), "0", True, None, True),  # VLMEvalKit takes zero for nothing found
        (number("-3"), "it is -3", True, None, None),
        (number("14"), "", False, None, False),
        (number("14"), "nan", False, None, None),
        (number("14"), "9" * 5000, False, None, None),
        (number("1.2", "float", 1), "1.20", True, True, True),
        (number("1.2", "float", 1), "1.23", True, None, True),
        (number("1.2", "float", 1), "about 1.2 m", True, None, None),
        (number("1.23", "float", 2), "1.2", False, None, False),
        (number("1.0", "float", 1), "1", True, True, True),
        (number("1.0", "float", 1), "1e999", False, None, False),
        (number("[2007, 2008]", "list"), "[2007,2008]", True, None, None),
        (number("[2007, 2008]", "list"), "between 2007 and 2008", True, None, None),
        (number("[2007, 2008]", "list"), "from 2007-2008", True, None, None),
        (number("[2007, 2008]", "list"), "2007", False, None, None),
        (number("[0.5, -1]", "list"), "They are [1], I mean [0.5, -1].", True, None, None),
    ],
)
def test_answers(
    problem: Item, answer: str, own: bool, vlmevalkit: bool | None, lmms_eval: bool | None
) -> None:
    found = (by_own_rules(problem, answer), by_vlmevalkit(problem, answer), by_lmms_eval(problem, answer))
    assert found == (own, vlmevalkit, lmms_eval)


PROBLEMS = (
    choice(), number("14"), number("1.2", "float", 1), number("[1, 2]", "list"), number("x", "text")
)  # fmt: skip


@given(st.text() | st.text("0123456789.,-−[]() e"), st.sampled_from(PROBLEMS))
def test_any_text_is_an_answer(answer: str, problem: Item) -> None:
    assert by_own_rules(problem, answer) in {True, False}
    assert by_vlmevalkit(problem, answer) in {True, False, None}
    assert by_lmms_eval(problem, answer) in {True, False, None}


@given(st.integers(-(10**6), 10**6), st.sampled_from(["{}", "So it is {}.", "{:,} apples", "n = {}"]))
def test_the_last_integer_counts(value: int, form: str) -> None:
    assert by_own_rules(number(str(value)), form.format(value))


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5))
def test_a_list_counts_however_it_is_spaced(values: list[int]) -> None:
    assert by_own_rules(number(str(values), "list"), f"It is {str(values).replace(' ', '')}.")


@pytest.mark.parametrize("text", ["1,111", "[", "8", "1,111,", "--", ". "])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: one.extra["answer_type"])
def test_long_answers_take_no_long_time(text: str, problem: Item) -> None:
    began = time.process_time()
    for rule in (by_own_rules, by_vlmevalkit, by_lmms_eval):
        rule(problem, text * 100_000)
    assert time.process_time() - began < 20


def test_only_the_end_of_a_long_answer_counts() -> None:
    assert extract(number("14"), "7 " + "x" * 30_000) == ""


def problem(pid: int, **other: object) -> dict[str, Any]:
    return {
        "question": "What part?",
        "choices": [*OPTIONS],
        "unit": None,
        "precision": None,
        "answer": "8/11",
        "question_type": "multi_choice",
        "answer_type": "text",
        "pid": str(pid),
        "image": "images/1.jpg",
        "metadata": {"task": "figure question answering", "skills": ["logic", "numbers"], "source": "us"},
        "query": "Hint: Please.\nQuestion: What part?\nChoices:\n(A) 3/11\n(B) 8/11",
        **other,
    }


def test_official_json(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(png(1))
    path = tmp_path / "testmini.json"
    free = problem(
        2, question_type="free_form", answer_type="float", precision=1.0, choices=None, answer="1.2", unit="m"
    )
    path.write_text(json.dumps({"1": problem(1), "2": free}))
    one, two = read(path)
    assert (one.index, one.answer, one.category) == ("1", "8/11", "figure question answering")
    assert (dict(one.choices), two.choices) == (dict(zip("ABCD", OPTIONS, strict=True)), {})
    assert one.picture.read() == png(1)
    assert query_prompt(one) == problem(1)["query"]
    assert lmms_eval_prompt(one) == (
        "What part?\nA. 3/11\nB. 8/11\nC. 6/11\nD. 3/5\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert lmms_eval_prompt(two) == (
        "What part? (Unit: m)\n"
        "Answer the question using a single floating-point number with one decimal place."
    )
    scores = {(one.rule, one.name): one.value for one in score([one, two], {"1": "B", "2": "ca. 1.24 m"})}
    assert scores["own rules", "Overall"] == scores["own rules", "logic"] == 100.0
    assert scores["vlmevalkit without its judge", "Overall"] == 50.0
    assert scores["vlmevalkit without its judge", "found without a judge"] == 50.0
    assert scores["lmms-eval without its judge", "Overall"] == 0.0


def test_vlmevalkit_tsv(tmp_path: Path) -> None:
    row = {
        "index": 1,
        "image": encoded(1),
        "question": problem(1)["query"],
        "answer": "8/11",
        "answer_option": "B",
        "choices": str([*OPTIONS]),
        "question_type": "multi_choice",
        "answer_type": "text",
        "task": "t",
        "skills": "['logic', 'numbers']",
    }
    (one,) = read(write_tsv(tmp_path / "a.tsv", [row]))
    assert query_prompt(one) == problem(1)["query"]
    assert one.question == "What part?"
    assert {one.name for one in score([one], {"1": "B"})} >= {"logic", "numbers", "t"}


def test_hugging_face(tmp_path: Path) -> None:
    rows = [problem(1, decoded_image={"bytes": png(1)}, precision=1.0)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "testmini-0.parquet")
    (one,) = read(tmp_path)
    assert (one.picture.read(), one.extra["precision"]) == (png(1), "1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choices": "x"}, "choices that are no list"),
        ({"choices": "[" * 1000}, "choices that are no list"),
        ({"choices": "-" * 5000 + "1"}, "choices that are no list"),
        ({"choices": ["a"] * 30}, "choices that are no list of 26"),
        ({"question_type": "essay"}, "of no type that MathVista has"),
        ({"precision": "many"}, "the precision 'many'"),
        ({"precision": 1e300}, "the precision '1e"),
        ({"image": "../x.jpg"}, "no path in its folder"),
    ],
)
def test_what_is_no_mathvista(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    path = tmp_path / "testmini.json"
    path.write_text(json.dumps({"1": problem(1, **wrong)}))
    with pytest.raises(BenchmarkError, match=message):
        read(path)
