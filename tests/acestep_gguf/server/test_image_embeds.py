"""A board with a camera runs the tower, and sends what it made; the server runs the decoder alone."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.embeds_file import write_embeds
from acestep_gguf.vision.encode_pictures import encode_pictures
from tests.support.live_server import LiveServer, about, live_server, refusal


@pytest.fixture(scope="module")
def decoder_only(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose bundle has lost the tower's files."""
    folder = tmp_path_factory.mktemp("decoder-only") / "tiny"
    shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    with live_server(folder, "-q", "F32", "-c", "256", "--no-cache", "--max-images", "2") as live:
        yield live


@dataclass(frozen=True)
class Sent:
    """A file of embeds, and the message that asks about it."""

    content: bytes

    def messages(self, count: int = 1) -> list[dict[str, Any]]:
        return with_embeds(base64.b64encode(self.content).decode(), count)


def with_embeds(text: Any, count: int = 1) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_embeds", "image_embeds": text}] * count
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture
def sent(tiny_bundle: Path, picture: Path, tmp_path: Path) -> Sent:
    (made,) = encode_pictures(tiny_bundle, [picture], tmp_path / "embeds", n_threads=1)
    return Sent(made.path.read_bytes())


def test_the_answer_is_the_one_about_the_picture(
    server: LiveServer, decoder_only: LiveServer, picture: Path, sent: Sent
) -> None:
    of_picture = server.ask(messages=about(picture), max_tokens=9).json()
    for where in (server, decoder_only):
        of_embeds = where.ask(messages=sent.messages(), max_tokens=9).json()
        assert of_embeds["choices"] == of_picture["choices"]
        counts = of_embeds["usage"]["prompt_tokens_details"]
        assert counts["image_tokens"] == of_picture["usage"]["prompt_tokens_details"]["image_tokens"] == 4


def test_responses_take_them_too(decoder_only: LiveServer, sent: Sent) -> None:
    chat = decoder_only.ask(messages=sent.messages(), max_tokens=6).json()
    (message,) = sent.messages()
    content = [message["content"][0], {"type": "input_text", "text": "What is this?"}]
    body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 6}
    got = decoder_only.post("/v1/responses", body).json()
    assert got["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_they_count_as_pictures(decoder_only: LiveServer, sent: Sent) -> None:
    two = decoder_only.ask(messages=sent.messages(2), max_tokens=1).json()
    assert two["usage"]["prompt_tokens_details"]["image_tokens"] == 8
    refusal(decoder_only.ask(messages=sent.messages(3), max_tokens=1), 400, "there are 3 pictures")


def test_a_picture_for_a_server_without_a_tower(decoder_only: LiveServer, picture: Path) -> None:
    refusal(decoder_only.ask(messages=about(picture)), 400, "image_embeds")


def changed_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        raw = json.dumps(header).encode()
        return len(raw).to_bytes(8, "little") + raw + content[end:]

    return changed


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "encode the picture again"),
        (lambda content: content + bytes(10**6), "longer than embeds"),
        (lambda content: b"\xff" * 8 + content[8:], "its header claims"),
        (lambda content: content[:-4] + b"\0\0\0\1", "its hash is wrong"),
        (changed_header(lambda header: header["image_embeds"].update(shape=[1024])), "shapes"),
        (changed_header(lambda header: header["image_embeds"].update(shape=[4, 2**70])), "again"),
        (changed_header(lambda header: header["__metadata__"].update(model="0" * 64)), "another model"),
        (changed_header(lambda header: header.pop("__metadata__")), "metadata"),
        (lambda _: b"\x89PNG\r\n\x1a\n", "not a file of image embeds"),
        (lambda _: b"", "not a file of image embeds"),
    ],
)
def test_hostile_files(
    decoder_only: LiveServer, sent: Sent, damage: Callable[[bytes], bytes], words: str
) -> None:
    error = refusal(decoder_only.ask(messages=Sent(damage(sent.content)).messages()), 400, words)
    assert error["code"] == "invalid_image"


def test_numbers_that_are_none(decoder_only: LiveServer, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    _, image = bundle.tower()
    rows = np.full((image.n_image_tokens, image.n_embd), np.inf, np.float32)
    embeds = ImageEmbeds(rows, np.zeros(image.n_image_tokens, np.float32))
    path = tmp_path / "x"
    write_embeds(path, embeds, bundle=bundle, precision="float32", pixels_sha256="0" * 64)
    refusal(decoder_only.ask(messages=Sent(path.read_bytes()).messages()), 400, "not finite")


@pytest.mark.parametrize("text", ["", "?", "AAA", "é", "data:image/png;base64,AAAA"])
def test_what_is_no_base64(decoder_only: LiveServer, text: str) -> None:
    refusal(decoder_only.ask(messages=with_embeds(text)), 400)


@pytest.mark.parametrize("text", [None, 1, ["AAAA"], {"url": "AAAA"}])
def test_what_is_no_text(decoder_only: LiveServer, text: Any) -> None:
    refusal(decoder_only.ask(messages=with_embeds(text)), 400, "image_embeds")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes(decoder_only: LiveServer, sent: Sent, data: st.DataObject) -> None:
    changed = bytearray(sent.content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    response = decoder_only.ask(messages=Sent(bytes(changed)).messages(), max_tokens=1)
    if response.status_code != 200:
        refusal(response, 400)
