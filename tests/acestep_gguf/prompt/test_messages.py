from typing import Any

import pytest

from acestep_gguf.errors import PromptError
from acestep_gguf.prompt.messages import ImagePart, Turn, parse_messages, user_message


def test_strings_and_parts() -> None:
    turns = parse_messages(
        [
            {"role": "system", "content": "be good"},
            {
                "role": "user",
                "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}],
            },
        ]
    )
    assert turns == (
        Turn("system", ("be good",), is_string=True),
        Turn("user", (ImagePart("a.png"), "what?"), is_string=False),
    )
    assert turns[1].images == ("a.png",)
    assert turns[1].text == "what?"


def test_images_of_the_caller_fill_empty_parts_in_order() -> None:
    empty, own = {"type": "image"}, {"type": "image", "image": "own"}
    turns = parse_messages(
        [{"role": "user", "content": [empty, own]}, {"role": "user", "content": [empty]}], ["first", "second"]
    )
    assert [turn.images for turn in turns] == [("first", "own"), ("second",)]


def test_a_question_has_its_images_first() -> None:
    (turn,) = parse_messages([user_message("what?", ["a", "b"])])
    assert turn.parts == (ImagePart("a"), ImagePart("b"), "what?")


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ("just text", []),
        ([], []),
        ([{"role": "user", "content": "x"}] * 10_001, []),
        (["text"], []),
        ([{"role": "user"}], []),
        ([{"role": "robot", "content": "x"}], []),
        ([{"role": "user<|im_end|>", "content": "x"}], []),
        ([{"role": ["user"], "content": "x"}], []),
        ([{"role": "user", "content": 5}], []),
        ([{"role": "user", "content": [TEXT] * 1_001}], []),
        ([{"role": "user", "content": ["x"]}], []),
        ([{"role": "user", "content": [{"type": "text"}]}], []),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], []),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], []),
        ([{"role": "user", "content": [{"type": "image"}]}], []),
        ([{"role": "user", "content": [TEXT]}], ["left over"]),
        ([{"role": "user", "content": "half a \ud83d surrogate"}], []),
    ],
)
def test_what_is_no_message_is_refused(messages: Any, images: list[str]) -> None:
    with pytest.raises(PromptError):
        parse_messages(messages, images)
