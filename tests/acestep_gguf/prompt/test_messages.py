from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.errors import PromptError
from acestep_gguf.prompt import image_source
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


PNG = b"\x89PNG\r\n\x1a\n"
BASE64 = b64encode(PNG).decode()
URL = f"data:image/png;base64,{BASE64}"


@pytest.mark.parametrize(
    ("part", "image"),
    [
        ({"type": "image_url", "image_url": {"url": URL}}, PNG),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "high"}}, PNG),
        ({"type": "image_url", "image_url": URL}, PNG),
        ({"type": "image_url", "image_url": {"url": URL.replace("data:image/png", "DATA:image/JPEG")}}, PNG),
        ({"type": "image", "url": URL}, PNG),
        ({"type": "image", "image": URL}, PNG),
        ({"type": "image", "base64": BASE64}, PNG),
        ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "path": Path("a.png"), "url": None, "image": None}, Path("a.png")),
        ({"type": "image", "image": "data.png"}, "data.png"),
        ({"type": "image", "image": PNG}, PNG),
    ],
)
def test_images_as_the_clients_of_others_write_them(part: dict[str, Any], image: object) -> None:
    (turn,) = parse_messages([{"role": "user", "content": [part]}])
    assert turn.images == (image,)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            "not loaded from a network",
        ),
        ({"type": "image", "url": "http://example.com/a.png"}, "not loaded from a network"),
        ({"type": "image", "image": "HTTPS://example.com/a.png"}, "not loaded from a network"),
        ({"type": "image", "url": "file:///etc/passwd"}, "path"),
        ({"type": "image", "image": "file:///etc/passwd"}, "path"),
        ({"type": "image", "url": "a.png"}, "path"),
        ({"type": "image", "url": f"data:text/html;base64,{BASE64}"}, "data:image/png;base64,"),
        ({"type": "image", "url": "data:image/png,%89PNG"}, "data:image/png;base64,"),
        ({"type": "image", "url": URL[:-1]}, "damaged"),
        ({"type": "image", "url": URL + "\n"}, "damaged"),
        ({"type": "image", "url": URL + "AAAA"}, "damaged"),
        ({"type": "image", "base64": "iVBO+_é"}, "damaged"),
        ({"type": "image", "base64": PNG}, "bytes"),
        ({"type": "image", "path": 5}, "int"),
        ({"type": "image", "url": 5}, "string"),
        ({"type": "image_url", "image_url": {"detail": "high"}}, "string"),
        ({"type": "image", "path": "a.png", "url": URL}, "path and url"),
        ({"type": ["image"]}, "part must be"),
    ],
)
def test_what_is_not_a_picture_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_messages([{"role": "user", "content": [part]}])


def test_a_large_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "MAX_URL_CHARS", len(URL) - 1)
    for part in ({"type": "image", "url": "data:" + URL}, {"type": "image", "base64": "é" * len(URL)}):
        with pytest.raises(PromptError, match="larger"):
            parse_messages([{"role": "user", "content": [part]}])


@given(st.binary(max_size=99))
def test_any_bytes_come_back_from_a_url(data: bytes) -> None:
    part = {"type": "image", "url": f"data:image/webp;base64,{b64encode(data).decode()}"}
    (turn,) = parse_messages([{"role": "user", "content": [part]}])
    assert turn.images == (data,)


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
