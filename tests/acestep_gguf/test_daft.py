"""On Daft's own runner, with folders, Parquet and two workers."""

from pathlib import Path
from typing import Any

import daft
import pytest

from acestep_gguf import AceStep, AnswerOptions, EngineOptions
from acestep_gguf.daft import answering

pytestmark = pytest.mark.slow

ENGINE = EngineOptions(quant="F32", n_threads=1, n_ctx=256)
QUESTION = "What is this?"


@pytest.fixture
def folder(picture: Path) -> Path:
    """The picture, and one that is broken."""
    (picture.parent / "broken.png").write_bytes(b"\x89PNG and no more")
    return picture.parent


def rows(frame: Any) -> list[dict[str, Any]]:
    return sorted(frame.to_pylist(), key=lambda row: str(row["name"]))


def test_a_folder_becomes_parquet(folder: Path, picture: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    options = AnswerOptions(max_tokens=6)
    with AceStep(tiny_bundle, ENGINE) as model:
        expected = model.generate(QUESTION, [picture], options).text
    answer = answering(tiny_bundle, prompt=QUESTION, options=options, engine=ENGINE, rows_at_once=1)
    names = [str(folder / "broken.png"), str(picture)] * 4
    images = [Path(name).read_bytes() for name in names]
    frame = daft.from_pydict({"name": names, "data": images})
    frame.select("name", answer(daft.col("data"))).write_parquet(str(tmp_path / "answers"))
    again = rows(daft.read_parquet(str(tmp_path / "answers")))
    assert [row["text"] for row in again] == [None] * 4 + [expected] * 4
    assert [bool(row["error"]) for row in again] == [True] * 4 + [False] * 4


def test_two_workers_answer_each_row_once(picture: Path, tiny_bundle: Path) -> None:
    options = AnswerOptions(max_tokens=6)
    with AceStep(tiny_bundle, ENGINE) as model:
        expected = model.generate(QUESTION, [picture], options).text
    answer = answering(
        tiny_bundle, prompt=QUESTION, options=options, engine=ENGINE, workers=2, cpus=1, rows_at_once=2
    )
    names = [f"{number:02}" for number in range(12)]
    frame = daft.from_pydict({"name": names, "image": [str(picture)] * len(names)})
    answered = rows(frame.select("name", answer(daft.col("image"))))
    assert [(row["name"], row["text"], row["error"]) for row in answered] == [
        (name, expected, None) for name in names
    ]


def test_rows_with_questions_and_a_schema(picture: Path, tiny_bundle: Path) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    options = AnswerOptions(json_schema=schema)
    answer = answering(tiny_bundle, options=options, engine=ENGINE)
    frame = daft.from_pydict({"name": ["a", "b"], "image": [str(picture)] * 2, "asked": ["Is it red?", None]})
    asked, unasked = rows(frame.select("name", answer(daft.col("image"), daft.col("asked"))))
    assert asked["sure"] in {True, False}
    assert (asked["prompt"], asked["path"]) == ("Is it red?", str(picture))
    assert (unasked["sure"], unasked["text"]) == (None, None)
    assert "no question" in unasked["error"]
