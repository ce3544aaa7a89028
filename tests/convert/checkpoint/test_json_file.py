import json
from pathlib import Path
from time import process_time

import pytest

from acestep_gguf.convert.checkpoint.json_file import MAX_JSON_BYTES, read_json
from acestep_gguf.errors import CheckpointError


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": [-1e999]}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "nan",
        "infinity",
        "a number beyond float64",
        "a negative one",
        "key twice",
        "inner key twice",
        "half a surrogate pair",
        "not UTF-8",
        "absurd number",
        "deep lists",
        "deep objects",
    ],
)
def test_unsound_json_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)


def test_one_key_twice_among_many_is_found_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    keys = [f"key {number}" for number in range(100_000)]
    path.write_text("{" + ",".join(f"{json.dumps(key)}:0" for key in [*keys, keys[-1]]) + "}")
    start = process_time()
    with pytest.raises(CheckpointError, match=r"'key 99999' stands twice in one object"):
        read_json(path)
    assert process_time() - start < 10  # counting each key anew took two minutes


def test_sound_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null], "smile": "\\ud83d\\ude42 é"}')
    assert read_json(path) == {"a": [1, 2.5, None], "smile": "🙂 é"}


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CheckpointError, match="is missing"):
            read_json(path)


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match="larger than"):
        read_json(path)
