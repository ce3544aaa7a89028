from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf import AceStep, Question
from acestep_gguf.errors import PromptError, UsageError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.messages import user_message


class Counted(list[Any]):
    """Messages that count how often somebody goes through them."""

    n_read = 0

    def __iter__(self) -> Iterator[Any]:
        self.n_read += 1
        return super().__iter__()


def test_messages_are_read_once(tiny_bundle: Path, picture: Path) -> None:
    messages = Counted([user_message("What is this?", [picture.read_bytes()])])
    question = Question(messages, options=AnswerOptions(max_tokens=2))
    with AceStep(tiny_bundle, quant="F32", n_threads=1, first=question) as model:
        assert model.generate(question).usage.image_tokens > 0
    assert messages.n_read == 1


def test_pictures_come_in_the_order_of_the_messages() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "image": "b.png"}]
    question = Question([{"role": "user", "content": parts}], ["a.png"])
    assert question.pictures == ["a.png", "b.png"]
    assert Question("What?", ["a.png"]).pictures == ["a.png"]


def test_what_is_no_question() -> None:
    with pytest.raises(UsageError, match="images is no list"):
        Question("What?", "a.png")
    with pytest.raises(PromptError, match="have no image part"):
        _ = Question([{"role": "user", "content": "Hi"}], ["a.png"]).turns
