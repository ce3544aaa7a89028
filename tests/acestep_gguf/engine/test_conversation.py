import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.answer import Answer, Timings, Usage
from acestep_gguf.engine.conversation import Attachment, AttachmentKind, Conversation, Exchange
from acestep_gguf.errors import ConversationError, ImageError


def attach(kind: AttachmentKind, path: Path) -> Attachment:
    if not path.exists():
        raise ImageError(f"{path} is missing")
    return Attachment(kind, str(path), sha256(path.read_bytes()).hexdigest(), path)


def answer(text: str) -> Answer:
    usage = Usage(prompt_tokens=1, image_tokens=0, cached_tokens=0, completion_tokens=1)
    timings = Timings(load_s=0, image_s=0, prefill_s=0, decode_s=0, prefill_tokens=1, decode_tokens=1)
    return Answer(text=text, tokens=(1,), finish_reason="stop", usage=usage, timings=timings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "talk.json"


@pytest.fixture
def conversation(picture: Path) -> Conversation:
    return Conversation(
        "be brief",
        [
            Exchange("What is this?", (attach("picture", picture),), answer("A cat.")),
            Exchange("Größer?\n", (), "Nein 🐈"),
        ],
    )


def test_the_messages_that_a_model_gets(conversation: Conversation, picture: Path) -> None:
    messages = conversation.messages("Why?", [])
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    first, text = messages[1]["content"]
    assert (first["image"], text["text"]) == (picture, "What is this?")
    assert isinstance(messages[2]["content"], Answer)
    assert messages[-1]["content"] == [{"type": "text", "text": "Why?"}]
    (only,) = Conversation().messages("Why?", [attach("picture", picture)])
    assert [part["type"] for part in only["content"]] == ["image", "text"]


def test_saved_and_loaded(conversation: Conversation, file: Path) -> None:
    conversation.save(file)
    again = Conversation.load(file, attach)
    assert again.system_prompt == "be brief"
    assert again.exchanges[0].attachments == conversation.exchanges[0].attachments
    assert [(past.question, past.answer) for past in again.exchanges] == [
        ("What is this?", "A cat."),
        ("Größer?\n", "Nein 🐈"),
    ]
    again.exchanges.append(Exchange("More?", (), answer("No.")))
    again.save(file)  # over the older one
    assert len(Conversation.load(file, attach).exchanges) == 3
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".png"] == ["talk.json"]


def test_no_other_file_is_overwritten(conversation: Conversation, picture: Path, file: Path) -> None:
    before = picture.read_bytes()
    file.write_text("[]")
    for other in (picture, file, file.parent):
        with pytest.raises(ConversationError, match="exists and is not a saved conversation"):
            conversation.save(other)
    assert picture.read_bytes() == before
    for path in (file.parent / "none" / "x", Path("x" * 5000), Path("nu\0ll")):
        with pytest.raises(ConversationError, match="another path"):
            conversation.save(path)


def test_a_picture_that_has_changed(conversation: Conversation, picture: Path, file: Path) -> None:
    conversation.save(file)
    picture.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(ConversationError, match=r"picture\.png has changed since"):
        Conversation.load(file, attach)
    picture.unlink()
    with pytest.raises(ImageError):
        Conversation.load(file, attach)


def with_field(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        place: Any = saved
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "damage",
    [
        with_field("format", value="acestep-gguf conversation 2"),
        with_field("system_prompt", value=5),
        with_field("more", value=5),
        with_field("exchanges", value=[{"question": "x", "attachments": [], "answer": "y"}] * 5000),
        with_field("exchanges", 0, "answer", value=None),
        with_field("exchanges", 0, "attachments", 0, "kind", value="program"),
        with_field("exchanges", 0, "attachments", 0, "sha256", value="0" * 63),
        with_field("exchanges", 0, "attachments", value=[{}] * 1000),
    ],
)
def test_a_damaged_conversation(
    damage: Callable[[dict[str, Any]], None], conversation: Conversation, file: Path
) -> None:
    conversation.save(file)
    saved = json.loads(file.read_bytes())
    damage(saved)
    file.write_text(json.dumps(saved))
    with pytest.raises(ConversationError, match="not a saved conversation") as caught:
        Conversation.load(file, attach)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 10**6, b"\xff", b"{}", b'{"format": "\\ud800"}'])
def test_what_is_no_conversation(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ConversationError, match="not a saved conversation"):
        Conversation.load(file, attach)


def test_what_is_no_file_or_too_long(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", Path("x" * 5000), Path("nu\0ll")):
        with pytest.raises(ConversationError, match="that /save wrote"):
            Conversation.load(path, attach)
    with file.open("wb") as out:
        out.truncate(17 * 2**20)
    with pytest.raises(ConversationError, match="longer than 16 MiB"):
        Conversation.load(file, attach)
