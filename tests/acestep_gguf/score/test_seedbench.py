import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.seedbench import (
    likelihood_scores,
    lmms_eval_likelihood_prompt,
    lmms_eval_prompt,
    official_likelihood_prompt,
    read,
    score,
)
from tests.support.benchmark_files import encoded, item, png, write_tsv

CHOICES = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}


def question(number: int, **other: object) -> dict[str, Any]:
    return {
        "answer": "B",
        **CHOICES,
        "data_id": f"{number}_7",
        "data_type": "image",
        "question": "How many?",
        "question_id": str(number),
        "question_type_id": 5,
        **other,
    }


def official(
    folder: Path, *questions: dict[str, Any], pictures: str = "SEED-Bench-image", suffix: str = ""
) -> Path:
    (folder / pictures).mkdir(exist_ok=True)
    (folder / pictures / f"1_7{suffix}").write_bytes(png(1))
    path = folder / "SEED-Bench.json"
    path.write_text(json.dumps({"questions": questions, "question_type": {"Instances Counting": 5}}))
    return path


@pytest.mark.parametrize(("pictures", "suffix"), [("SEED-Bench-image", ""), ("", ".jpg")])
def test_official_file(tmp_path: Path, pictures: str, suffix: str) -> None:
    video = question(2, data_type="video", question_type_id=10, segment=[1.5, 2.0], data_id="P03/P03_24.MP4")
    (one,) = read(official(tmp_path, question(1), video, pictures=pictures, suffix=suffix))
    assert (one.index, one.answer, one.category) == ("1", "B", "Instances Counting")
    assert dict(one.choices) == {"A": "One", "B": "Two", "C": "Three", "D": "Four"}
    assert one.picture.read() == png(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"questions": {}}', "no list of 200000 questions"),
        ('{"questions": [1]}', "question 1 is no object"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        (json.dumps({"questions": []}), "has no questions"),
        (json.dumps({"questions": [question(1, data_id="../../etc/passwd")]}), "no path in its folder"),
        (
            json.dumps({"questions": [question(1, question_type_id=77)]}),
            "question_type_id that pictures have not",
        ),
        (json.dumps({"questions": [question(1), question(1)]}), "the question '1' twice"),
        (json.dumps({"questions": [question(1, question="x" * 2**17)]}), "text of more than 64 KiB"),
    ],
)
def test_what_is_no_seedbench(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "SEED-Bench.json"
    path.write_text(content)
    with pytest.raises(BenchmarkError, match=message):
        read(path)


def test_tsv(tmp_path: Path) -> None:
    row = {"index": 0, "image": encoded(4), "question": "How many?", "A": "One", "B": "Two", "answer": "A"}
    (one,) = read(write_tsv(tmp_path / "a.tsv", [row | {"category": "Scene Understanding"}]))
    assert (one.category, dict(one.choices)) == ("Scene Understanding", {"A": "One", "B": "Two"})


def test_hugging_face(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        question(1, image=[{"bytes": png(1)}]),
        question(2, image=[{"bytes": png(1)}] * 8, data_type="video"),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (one,) = read(path)
    assert (one.category, one.picture.read()) == ("Instances Counting", png(1))


def test_letters_by_both_rules() -> None:
    items = [
        item("B", index=str(n), category="xy"[n % 2], choices=("One", "Two", "Three", "Four"))
        for n in range(4)
    ]
    answers = {"0": "B", "1": "two", "2": "b. it is", "3": "A or B"}
    scores = {(one.rule, one.name): one.value for one in score(items, answers)}
    assert scores == {
        ("vlmevalkit", "Overall"): 50.0,
        ("vlmevalkit", "x"): 50.0,
        ("vlmevalkit", "y"): 50.0,
        ("lmms-eval", "Overall"): 50.0,
        ("lmms-eval", "x"): 100.0,
        ("lmms-eval", "y"): 0.0,
    }


def test_likelihoods() -> None:
    items = [
        item(answer, index=str(n), category="x", choices=("a", "b", "c")) for n, answer in enumerate("BC")
    ]
    sums = {"0": [-3.0, -2.0, -4.0], "1": [-1.0, -1.0, -5.0]}
    means = {"0": [-0.1, -2.0, -4.0], "1": [-1.0, -1.0, -0.5]}
    scores = {(one.rule, one.name): (one.value, one.n) for one in likelihood_scores(items, sums, means)}
    assert scores == {
        ("likelihood, sum", "Overall"): (50.0, 2),
        ("likelihood, sum", "x"): (50.0, 2),
        ("likelihood, mean", "Overall"): (50.0, 2),
        ("likelihood, mean", "x"): (50.0, 2),
    }


def test_prompts(tmp_path: Path) -> None:
    (one,) = read(official(tmp_path, question(1)))
    assert lmms_eval_prompt(one) == (
        "How many?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert official_likelihood_prompt(one) == "Question: How many?\nAnswer:"
    assert lmms_eval_likelihood_prompt(one) == "How many? Answer :"
