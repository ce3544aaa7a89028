"""Tables in, tables out, as Ray Data and Daft hand them to a worker."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf import AceStep, AnswerOptions, EngineOptions
from acestep_gguf.batch.blocks import BlockAnswerer, answer_types
from acestep_gguf.batch.rows import COLUMNS
from acestep_gguf.errors import UsageError

ENGINE = EngineOptions(quant="F32", n_threads=1, n_ctx=256)
OPTIONS = AnswerOptions(max_tokens=6)
QUESTION = "What is this?"
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "text": {"enum": ["a", "b"]}, "both": {"const": [1, 2]}},
    "required": ["sure", "text", "both"],
}


@pytest.fixture(scope="module")
def answerer(tiny_bundle: Path) -> BlockAnswerer:
    return BlockAnswerer(tiny_bundle, prompt=QUESTION, options=OPTIONS, engine=ENGINE)


@pytest.fixture
def expected(tiny_bundle: Path, picture: Path) -> str:
    with AceStep(tiny_bundle, ENGINE) as model:
        return model.generate(QUESTION, [picture], OPTIONS).text


def test_bytes_paths_structs_and_lists(answerer: BlockAnswerer, picture: Path, expected: str) -> None:
    data = picture.read_bytes()
    for cells in (
        [data],
        [str(picture)],
        [{"bytes": data, "path": "elsewhere.png"}],
        [{"bytes": None, "path": str(picture)}],
        [[data]],
    ):
        (row,) = answerer.answer(pyarrow.table({"image": cells})).to_pylist()
        assert (row["text"], row["error"], row["image_tokens"]) == (expected, None, 4)
        assert row["path"] == (str(picture) if str(picture) in str(cells) else None)
        assert row["id"] == (row["path"] or "")
    (both,) = answerer.answer(pyarrow.table({"image": [[data, data]]})).to_pylist()
    assert both["image_tokens"] == 8


def test_each_row_is_a_row_in_its_order(answerer: BlockAnswerer, picture: Path, expected: str) -> None:
    data = picture.read_bytes()
    block = pyarrow.table(
        {
            "id": [5, 4, 3, 2, 1, 0],
            "image": [data, b"broken", None, data, b"", data],
            "prompt": [None, None, None, " ", None, QUESTION],
            "label": [[1], [2], [3], [4], [5], None],
        }
    )
    answers = answerer.answer(block)
    assert answers.column_names == [*COLUMNS, "label"]
    assert answers["id"].to_pylist() == block["id"].to_pylist()
    assert answers["label"] == block["label"]
    assert answers["text"].to_pylist() == [expected, None, None, None, None, expected]
    errors = answers["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, False, False, False, True]
    assert "no picture" in errors[2]
    assert "no question" in errors[3]


def test_the_types_do_not_depend_on_what_is_in_a_block(answerer: BlockAnswerer, picture: Path) -> None:
    blocks = ([picture.read_bytes()], [b"broken"], [b"broken", picture.read_bytes()])
    schemas = [
        answerer.answer(pyarrow.table({"id": ["x"] * len(cells), "image": cells})).schema for cells in blocks
    ]
    assert schemas[0] == schemas[1] == schemas[2]
    image = pyarrow.array([], pyarrow.binary())
    empty = answerer.answer(pyarrow.table({"id": pyarrow.array([], pyarrow.string()), "image": image}))
    assert empty.schema == schemas[0]
    assert len(empty) == 0


def test_members_of_a_schema_are_columns(tiny_bundle: Path, picture: Path) -> None:
    options = AnswerOptions(json_schema=SCHEMA)
    answerer = BlockAnswerer(tiny_bundle, prompt=QUESTION, options=options, engine=ENGINE)
    answers = answerer.answer(pyarrow.table({"id": ["x", "y"], "image": [picture.read_bytes(), b"broken"]}))
    assert answers.column_names == [*COLUMNS, "sure", "answer_text", "both"]
    right, wrong = answers.to_pylist()
    assert right["sure"] in {True, False}
    assert right["answer_text"] in {"a", "b"}
    assert right["both"] == "[1,2]"
    assert (wrong["sure"], wrong["answer_text"], wrong["both"]) == (None, None, None)
    assert answer_types(options) == {field.name: field.type for field in answers.schema if field.name != "id"}
    assert str(answers.schema.field("sure").type) == "bool"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"bytes": [b"x"]}, "no column image"),
        ({"image": [b"x"], "text": ["y"]}, "a column text"),
        ({"image": [b"x"], "path": ["y"]}, "a column path"),
    ],
)
def test_columns_that_cannot_be(answerer: BlockAnswerer, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        answerer.answer(pyarrow.table(columns))


def test_columns_of_other_names(tiny_bundle: Path, picture: Path, expected: str) -> None:
    """As Ray's readers call them; a path that is a name only is no column of its own."""
    answerer = BlockAnswerer(
        tiny_bundle, prompt=QUESTION, image="bytes", id="path", options=OPTIONS, engine=ENGINE
    )
    block = pyarrow.table({"path": ["s3://far/away.png"], "bytes": [picture.read_bytes()], "id": [7]})
    with pytest.raises(UsageError, match="a column id"):
        answerer.answer(block)
    (row,) = answerer.answer(block.drop(["id"])).to_pylist()
    assert (row["id"], row["path"], row["text"]) == ("s3://far/away.png", None, expected)


def test_a_block_of_another_format(answerer: BlockAnswerer) -> None:
    with pytest.raises(UsageError, match='batch_format="pyarrow"'):
        answerer.answer({"image": []})


def test_an_empty_prompt(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        BlockAnswerer(tiny_bundle, prompt=" ")


CELLS = st.one_of(st.none(), st.binary(max_size=40), st.just(b"\x89PNG\r\n\x1a\n"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, max_size=6))
def test_any_bytes_are_as_many_rows(answerer: BlockAnswerer, cells: list[bytes | None]) -> None:
    image = pyarrow.array(cells, pyarrow.binary())
    answers = answerer.answer(pyarrow.table({"id": pyarrow.array(range(len(cells))), "image": image}))
    assert answers["id"].to_pylist() == [*range(len(cells))]
    assert all(answers["error"].to_pylist())
