from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import Item
from acestep_gguf.score.mme import lmms_eval_prompt, read, score, vlmevalkit_prompt
from tests.support.benchmark_files import encoded, item, png, write_tsv

QUESTION = "Is it red? Please answer yes or no."


def pairs(category: str, *answers: str) -> dict[str, str]:
    """Answers to pictures with a right yes and a right no each: "yes no" is all right."""
    return {
        f"{category}{picture}#{number}": answer
        for picture, both in enumerate(answers)
        for number, answer in enumerate(both.split())
    }


def items_of(answers: dict[str, str]) -> list[Item]:
    return [
        item(
            "No" if index.endswith("1") else "Yes",
            index=index,
            group=index[:-2],
            category=index[:-2].rstrip("0123456789"),
        )
        for index in answers
    ]


def test_points() -> None:
    answers = pairs("OCR", "yes no", "no yes", "yes yes", "yes no") | pairs("code_reasoning", "yes ja")
    scores = {(one.name, one.rule): one for one in score(items_of(answers), answers)}
    for rule in ("vlmevalkit", "lmms-eval", "official"):
        found = {name: one.value for (name, by), one in scores.items() if by == rule}
        assert found == {
            "OCR acc": 62.5,
            "OCR acc+": 50.0,
            "OCR": 112.5,
            "perception": 112.5,
            "code_reasoning acc": 50.0,
            "code_reasoning acc+": 0.0,
            "code_reasoning": 50.0,
            "cognition": 50.0,
            "total": 162.5,
        }
    best = scores["perception", "vlmevalkit"]
    assert (best.most, best.n) == (200.0, 4)
    assert scores["OCR acc", "vlmevalkit"].n == 8


def test_rules_differ() -> None:
    answers = pairs("count", "y n", "yes not-so")
    by_rule = {one.rule: one.value for one in score(items_of(answers), answers) if one.name == "perception"}
    assert by_rule == {"vlmevalkit": 25.0, "lmms-eval": 200.0, "official": 100.0}


def test_an_answer_is_missing() -> None:
    answers = pairs("count", "yes no")
    with pytest.raises(BenchmarkError, match="1 questions have no answer yet, as 'count0#1'"):
        score(items_of(answers), {"count0#0": "yes"})


@pytest.mark.parametrize(("pictures", "questions"), [("", ""), ("images", "questions_answers_YN")])
def test_official_folders(tmp_path: Path, pictures: str, questions: str) -> None:
    for folder in (pictures, questions):
        (tmp_path / "OCR" / folder).mkdir(parents=True, exist_ok=True)
    for name in ("2", "1"):
        (tmp_path / "OCR" / pictures / f"{name}.png").write_bytes(png(int(name)))
        text = f"{QUESTION}\tYes\r\nIs it blue?\tno.\n\n"
        (tmp_path / "OCR" / questions / f"{name}.txt").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    found = read(tmp_path)
    assert [(one.index, one.answer) for one in found] == [
        *(("OCR/1.png#1", "Yes"), ("OCR/1.png#2", "No"), ("OCR/2.png#1", "Yes"), ("OCR/2.png#2", "No")),
    ]
    assert found[0].question == QUESTION
    assert found[0].picture.key == found[1].picture.key != found[2].picture.key
    assert found[3].picture.read() == png(2)
    (tmp_path / "OCR" / questions / "1.txt").write_text("only one\tYes\n")
    with pytest.raises(BenchmarkError, match=r"1 questions about 'OCR/1\.png', not two"):
        read(tmp_path)
    (tmp_path / "OCR" / questions / "1.txt").write_text("perhaps\tPerhaps\n")
    with pytest.raises(BenchmarkError, match="neither yes nor no"):
        read(tmp_path)
    (tmp_path / "OCR" / questions / "1.txt").write_bytes(b"x" * 2**17)
    with pytest.raises(BenchmarkError, match="larger than 64 KiB"):
        read(tmp_path)
    (tmp_path / "OCR" / questions / "1.txt").unlink()
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read(tmp_path)


def test_tsv(tmp_path: Path) -> None:
    rows = [
        {"index": n, "image": encoded(n // 2), "image_path": f"OCR/{n // 2}.png", "question": QUESTION}
        | {"answer": ("Yes", "No")[n % 2], "category": "OCR"}
        for n in range(4)
    ]
    found = read(write_tsv(tmp_path / "MME.tsv", rows))
    assert [(one.index, one.group) for one in found] == [
        *(("0", "OCR/0.png"), ("1", "OCR/0.png"), ("2", "OCR/1.png"), ("3", "OCR/1.png")),
    ]
    rows[0]["category"] = "taste"
    with pytest.raises(BenchmarkError, match="category 'taste', which MME has not"):
        read(write_tsv(tmp_path / "MME.tsv", rows))


def test_hugging_face(tmp_path: Path) -> None:
    rows = [
        {"question_id": f"OCR/{n // 2}.png", "image": {"bytes": png(n // 2)}, "question": QUESTION}
        | {"answer": ("Yes", "No")[n % 2], "category": "OCR"}
        for n in range(4)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    found = read(tmp_path)
    assert [one.index for one in found] == ["OCR/0.png#1", "OCR/0.png#2", "OCR/1.png#1", "OCR/1.png#2"]
    assert found[2].picture.read() == png(1)


def test_prompts() -> None:
    one = Item(
        index="1", group="1", picture=item("Yes").picture, question=QUESTION, answer="Yes", category="OCR"
    )
    assert vlmevalkit_prompt(one) == QUESTION
    assert lmms_eval_prompt(one) == "Is it red?\nAnswer the question using a single word or phrase."
