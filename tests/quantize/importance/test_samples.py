import json
from pathlib import Path

import pytest

from acestep_gguf.errors import BatchError, ImatrixError
from acestep_gguf.quantize.importance.samples import Sample, picture_samples, read_samples


def test_each_question_about_each_picture(picture: Path, tmp_path: Path) -> None:
    assert picture_samples([str(tmp_path)], ["Who?", "What?"]) == [
        Sample((picture,), "Who?"),
        Sample((picture,), "What?"),
    ]
    table = tmp_path / "own.jsonl"
    table.write_text(json.dumps({"image": picture.name, "prompt": "Own?"}))
    assert picture_samples([str(table)], ["Who?", "What?"]) == [Sample((picture,), "Own?")]
    with pytest.raises(BatchError, match="is not there"):
        picture_samples([str(tmp_path / "none.png")], ["Who?"])


def test_rows_with_pictures_and_without_and_with_answers(tmp_path: Path) -> None:
    rows = [
        {"images": ["a.png", "b.png"], "prompt": "Which?", "answer": "Both."},
        {"images": [], "prompt": "Why?"},
        {"prompt": "So?", "answer": ""},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_samples(tmp_path / "data.jsonl") == [
        Sample((tmp_path / "a.png", tmp_path / "b.png"), "Which?", "Both."),
        Sample((), "Why?"),
        Sample((), "So?", ""),
    ]


@pytest.mark.parametrize(
    "line",
    ["", "no JSON", "[]", "{}", '{"prompt": 3}', '{"prompt": "a", "images": "b"}', '{"prompt": "a", "b": 1}'],
)
def test_what_is_no_such_row_is_one_clear_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "sound"}}\n{line}\n')
    if not line:
        assert len(read_samples(path)) == 1
        return
    with pytest.raises(ImatrixError, match=r"data\.jsonl:2 is no object with images, prompt and answer"):
        read_samples(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")
