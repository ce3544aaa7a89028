"""A server with several clients: who gets what, who leaves, who has to wait, and how it ends."""

import base64
import io
import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from acestep_gguf import AceStep
from acestep_gguf.convert import convert_checkpoint
from tests.support.live_server import LiveServer, about, data_lines, data_url, live_server, refusal
from tests.support.tiny_checkpoints import TinyCheckpoint

pytestmark = pytest.mark.slow

OPEN = 'acestep_open_answers{model="tiny"}'


def until(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    give_up = monotonic() + 60
    while not what():
        assert monotonic() < give_up
        sleep(0.02)


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose answers have room to take long."""
    folder = tmp_path_factory.mktemp("long")
    checkpoint = TinyCheckpoint(max_position_embeddings=65536).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "tiny", ("Q4_K_M",))
    return folder / "tiny"


@pytest.fixture
def endless(long_bundle: Path) -> Iterator[LiveServer]:
    """A server of one place and one that waits, whose answers do not end by themselves."""
    arguments = ("-c", "65536", "-np", "1", "--queue", "1", "--max-tokens", "60000", "--drain", "1")
    with live_server(long_bundle, *arguments, "--no-cache") as live:
        yield live


def begin(server: LiveServer, stack: Any, **body: Any) -> Iterator[str]:
    """Begin a stream, and wait for its first piece; the lines that follow."""
    request = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, **body}
    response = stack.enter_context(
        httpx.stream("POST", f"{server.url}/v1/chat/completions", json=request, timeout=60)
    )
    lines: Iterator[str] = response.iter_lines()
    stack.callback(lambda: lines)  # without anybody who holds them, they are closed, and the client leaves
    while '"content"' not in next(lines):
        pass
    return lines


def never_ending() -> dict[str, Any]:
    """A long string, which a schema keeps from ending."""
    schema = {"type": "string", "minLength": 50_000}
    form = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
    return {"response_format": form, "max_tokens": 60_000}


def test_each_gets_the_answer_for_its_own_picture(
    server: LiveServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    pictures = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.linear_gradient("L").rotate(30 * number).convert("RGB").save(path)
        pictures.append(path)
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256) as model:
        expected = [model.generate("What?", [path], max_tokens=8).text for path in pictures]
    assert len({*expected}) > 6

    def ask(number: int) -> str:
        response = server.ask(messages=about(pictures[number], "What?"), max_tokens=8)
        return str(response.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(ask, range(12))] == expected


def test_paths_that_are_not_there_and_methods_that_they_do_not_take(server: LiveServer) -> None:
    for method, path, status, words in (
        ("POST", "/v1/completions", 404, "/v1/chat/completions"),
        ("GET", "/v1/files", 404, "there is no such path"),
        ("GET", "/v1/chat/completions", 405, "takes POST, not GET"),
        ("DELETE", "/v1/models/tiny", 405, "takes GET, not DELETE"),
    ):
        refused = httpx.request(method, f"{server.url}{path}")
        assert (refused.status_code, words in refused.json()["error"]["message"]) == (status, True)


def test_who_leaves_makes_room(endless: LiveServer) -> None:
    with ExitStack() as first:
        begin(endless, first, **never_ending())
        assert endless.metrics()[OPEN] == 1
    until(lambda: endless.metrics()[OPEN] == 0)
    assert endless.metrics()['acestep_answers_total{reason="cancelled"}'] == 1
    assert endless.ask(messages=[{"role": "user", "content": "Hello"}], max_tokens=2).status_code == 200


def test_who_leaves_without_a_stream_makes_room(endless: LiveServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], **never_ending()}).encode()
    host, _, port = endless.url.removeprefix("http://").partition(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: endless.metrics().get(OPEN, 0) == 1)
    until(lambda: endless.metrics()[OPEN] == 0)


def test_a_full_queue_says_when_to_come_again(endless: LiveServer) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        begin(endless, stack, **never_ending())
        waiting = thread.submit(endless.ask, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
        until(lambda: endless.metrics()[OPEN] == 2)
        response = endless.ask(messages=[{"role": "user", "content": "Hello"}])
        assert refusal(response, 429)["code"] == "queue_full"
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        refusal(endless.ask(messages=[{"role": "user", "content": "Hello"}], stream=True), 429)
        stack.close()  # the first one leaves
        assert waiting.result().status_code == 200


def test_an_answer_that_takes_too_long_is_cut(long_bundle: Path) -> None:
    with live_server(long_bundle, "-c", "65536", "--timeout", "1", "--max-tokens", "60000") as server:
        response = server.ask(messages=[{"role": "user", "content": "Hello"}], **never_ending())
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "length"
        assert len(choice["message"]["content"]) > 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cuts_what_takes_too_long_and_ends_it_well(
    endless: LiveServer, number: signal.Signals
) -> None:
    with ExitStack() as stack:
        lines = begin(endless, stack, **never_ending())
        endless.process.send_signal(number)
        data = data_lines([*lines])
        assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
        assert data[-1] == "[DONE]"
    assert endless.process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endless.url}/health")
    assert "Traceback" not in endless.log.read_text()


def test_after_a_signal_what_runs_is_finished(tiny_bundle: Path) -> None:
    with live_server(tiny_bundle, "-c", "256", "--no-cache") as server, ExitStack() as stack:
        lines = begin(server, stack, max_tokens=100)
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = data_lines([*lines])
        assert json.loads(last)["choices"][0]["finish_reason"] in {"length", "stop"}
        assert done == "[DONE]"
        assert server.process.wait(30) == 0


def test_a_killed_server_finds_what_it_read(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    arguments = (tiny_bundle, "-q", "F32", "-c", "256", "-np", "2")
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    with live_server(*arguments, env=env) as server:
        first = server.ask(messages=about(picture), max_tokens=4).json()
        until(lambda: len([*tmp_path.rglob("state-*")]) == 1)
        server.process.kill()
    answer = first["choices"][0]["message"]
    more = [*about(picture), answer, {"role": "user", "content": "And now?"}]
    with live_server(*arguments, env=env) as server:
        second = server.ask(messages=more, max_tokens=4).json()
        again = server.ask(messages=about(picture), max_tokens=4).json()
    n_image = second["usage"]["prompt_tokens_details"]["image_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > n_image > 0
    assert again["choices"][0]["message"] == answer


def test_bundles_are_loaded_when_they_are_asked_for(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(tiny_bundle, twin)
    with live_server(tiny_bundle, twin, "-c", "256", "--no-cache") as server:

        def loaded() -> dict[str, bool]:
            models = httpx.get(f"{server.url}/v1/models").json()["data"]
            return {model["id"]: model["loaded"] for model in models}

        assert loaded() == {"tiny": True, "twin": False}
        answers = [
            server.ask(model=name, messages=about(picture), max_tokens=4).json() for name in ("twin", "tiny")
        ]
        assert loaded() == {"tiny": True, "twin": True}
        assert [answer["model"] for answer in answers] == ["twin", "tiny"]
        texts = [answer["choices"][0]["message"]["content"] for answer in answers]
        assert texts[0] == texts[1]
        assert answers[0]["timings"]["load_ms"] > 0


def test_the_picture_as_the_model_sees_it(server: LiveServer, picture: Path) -> None:
    seen = server.post("/v1/images/preview", {"image_url": data_url(picture)}).json()
    assert (seen["width"], seen["height"], seen["image_tokens"]) == (28, 28, 4)
    with Image.open(io.BytesIO(base64.b64decode(seen["image_url"].partition(",")[2]))) as opened:
        got = np.asarray(opened).astype(int)
    with Image.open(picture) as opened:  # resized by the shorter side, and its middle cut out
        resized = opened.resize((42, 28), Image.Resampling.BICUBIC).crop((7, 0, 35, 28))
    assert np.abs(got - np.asarray(resized)).max() <= 1
    refusal(server.post("/v1/images/preview", {"image_url": data_url(b"no picture")}), 400, "picture")
