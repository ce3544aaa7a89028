"""scripts/checks/imatrix.py compares chunks with those of llama-imatrix, by what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.text_chunks import read_text, text_chunks
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint

TEXT = "A red circle above two blue squares. <|im_end|> How many are there? " * 6

Opened = Callable[[Decoder], Model]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    def open_decoder(decoder: Decoder) -> Model:
        checkpoint = TinyCheckpoint(decoder=decoder, has_tower=False).write(tmp_path / "checkpoint")
        bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"])
        return Model(tmp_path / "bundle" / bundle.decoder().file)

    return open_decoder


def test_chunks_are_whole_and_in_order(opened: Opened) -> None:
    with opened("qwen2") as model:
        tokens = model.tokenize(TEXT)  # nothing in it becomes a control token
        chunks = text_chunks(model, TEXT, 32)
        assert len(chunks) == len(tokens) // 32 > 3
        assert [token for chunk in chunks for token in chunk] == tokens[: 32 * len(chunks)]
        assert text_chunks(model, "short", 32) == []


def test_each_chunk_begins_with_the_token_that_begins_texts(opened: Opened) -> None:
    with opened("llama3") as model:
        plain = model.tokenize(TEXT)
        chunks = text_chunks(model, TEXT, 32)
        (begin,) = {chunk[0] for chunk in chunks}
        assert begin not in plain
        together = [begin, *plain]
        for number, chunk in enumerate(chunks):
            assert chunk[1:] == together[32 * number + 1 : 32 * (number + 1)]


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_text(path)
    path.write_text("one\n\n")
    assert read_text(path) == "one\n"
