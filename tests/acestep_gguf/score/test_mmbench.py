from pathlib import Path

import pytest

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import Item
from acestep_gguf.score.mmbench import lmms_eval_prompt, read, score, vlmevalkit_prompt
from tests.support.benchmark_files import encoded, png, write_tsv

CHOICES = ("a cat", "a dog", "a bird")


def rows_of(*questions: tuple[int, str, str]) -> list[dict[str, object]]:
    """Rows of questions with an index, a split and an l2-category, three rotations each."""
    return [
        {"index": index + turn * 10**6, "question": "What is it?", "hint": "Look.", "split": split}
        | dict(zip("ABC", CHOICES[turn:] + CHOICES[:turn], strict=True))
        | {"answer": "ACB"[turn], "category": f"{ability}_x", "l2-category": ability}
        | {"image": encoded(index) if turn == 0 else index}
        for index, split, ability in questions
        for turn in range(3)
    ]


def test_rotations_are_right_together(tmp_path: Path) -> None:
    rows = rows_of((1, "dev", "logic"), (2, "dev", "logic"), (3, "dev", "reading"), (4, "val", "logic"))
    items = read(write_tsv(tmp_path / "a.tsv", rows))
    assert items[1].picture.read() == png(1)
    answers = {one.index: f"{one.answer}." for one in items} | {"2000002": "A", "1000003": "the cat or so"}
    scores = {(one.name, one.rule): (one.value, one.n) for one in score(items, answers)}
    assert [key[0] for key in scores][:3] == ["Overall, dev", "Overall, val", "logic, dev"]
    assert scores["Overall, val", "vlmevalkit"] == (100.0, 1)
    assert scores["Overall, dev", "vlmevalkit"] == (100 / 3, 3)
    assert scores["logic, dev", "vlmevalkit"] == (50.0, 2)
    assert scores["reading_x, dev", "vlmevalkit"] == (0.0, 1)
    assert scores["reading_x, dev", "lmms-eval"] == (0.0, 1)


def test_without_published_answers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [row | {"answer": None} for row in rows_of((1, "test", "logic"))]
    items = read(write_tsv(tmp_path / "a.tsv", rows))
    with pytest.raises(BenchmarkError, match="answers are not published"):
        score(items, {one.index: "A" for one in items})


def test_a_question_without_its_first_rotation(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        row | {"image": encoded()} for row in rows_of((1, "dev", "x"), (2, "dev", "x"))
    ]
    items = read(write_tsv(tmp_path / "a.tsv", rows[1:]))
    answers = {one.index: str(one.answer) for one in items}
    assert score(items, answers)[0].n == 1
    with pytest.raises(BenchmarkError, match="first rotation"):
        score(items[:2], answers)


def test_what_is_no_mmbench(tmp_path: Path) -> None:
    rows = rows_of((1, "dev", "x"))
    for wrong, message in (
        ({"index": "one"}, "index that is no number"),
        ({"question": None}, "has nothing in question"),
        ({"index": 1000001}, "the question '1000001' twice"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            read(
                write_tsv(
                    tmp_path / "a.tsv", [rows[0] | wrong, *({**row, "image": encoded()} for row in rows[1:])]
                )
            )


def test_prompts(tmp_path: Path) -> None:
    with_hint, _, _ = read(write_tsv(tmp_path / "a.tsv", rows_of((1, "dev", "x"))))
    options = "A. a cat\nB. a dog\nC. a bird\n"
    assert vlmevalkit_prompt(with_hint) == (
        f"Hint: Look.\nQuestion: What is it?\nOptions:\n{options}"
        "Please select the correct answer from the options above. \n"
    )
    assert lmms_eval_prompt(with_hint) == (
        f"Look. What is it? There are several options:\n{options}"
        "\nAnswer with the option's letter from the given choices directly."
    )
    open_one = Item(index="1", group="1", picture=with_hint.picture, question="Why?", answer="", category="")
    assert vlmevalkit_prompt(open_one) == "Question: Why?\n"
    assert lmms_eval_prompt(open_one).startswith("Why? There")
