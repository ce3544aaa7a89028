"""Folders with vocab.json and merges.txt instead of tokenizer.json; tests/parity compares the ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.tokenizer import read_tokenizer, read_vocabulary
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_internvl import TinyInternVL

OLD = TinyInternVL(is_original=True, has_tokenizer_json=False)


def test_the_vocabulary_is_that_of_tokenizer_json(tmp_path: Path) -> None:
    new = TinyInternVL(is_original=True).write(tmp_path / "new")
    old = OLD.write(tmp_path / "old")
    vocabularies = [
        read_vocabulary(read_tokenizer(CheckpointFolder(folder)), OLD.vocab_size, None)
        for folder in (new, old)
    ]
    assert vocabularies[0] == vocabularies[1]


def test_without_the_description_of_added_tokens_the_special_ones_are_those_with_a_name(
    tmp_path: Path,
) -> None:
    folder = OLD.write(tmp_path / "c")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    path.write_text(
        json.dumps(config | {"additional_special_tokens": ["<|im_start|>", {"content": "<img>"}]})
    )
    vocabulary = read_vocabulary(read_tokenizer(CheckpointFolder(folder)), OLD.vocab_size, None)
    assert vocabulary.control.keys() == {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>"}
    assert "<tool_call>" in vocabulary.user_defined


def test_a_line_that_begins_with_a_number_sign_is_a_merge(tmp_path: Path) -> None:
    folder = OLD.write(tmp_path / "c")
    path = folder / "merges.txt"
    merges = path.read_text()
    path.write_text(f"{merges}# #\n")
    vocab = json.loads((folder / "vocab.json").read_text())
    assert "##" not in vocab
    with pytest.raises(CheckpointError, match="'# #' is not about tokens"):
        read_vocabulary(read_tokenizer(CheckpointFolder(folder)), OLD.vocab_size, None)


def test_another_tokenizer_needs_a_tokenizer_json(tmp_path: Path) -> None:
    folder = OLD.write(tmp_path / "c")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read_tokenizer(CheckpointFolder(folder))


def test_a_damaged_description_of_added_tokens_is_said(tmp_path: Path) -> None:
    folder = OLD.write(tmp_path / "c")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    damages: list[Any] = [[], {"x": {}}, {"1": "a"}, {"9" * 5000: {}}]
    for damaged in damages:
        path.write_text(json.dumps(config | {"added_tokens_decoder": damaged}))
        with pytest.raises(CheckpointError, match="added_tokens_decoder"):
            read_tokenizer(CheckpointFolder(folder))
