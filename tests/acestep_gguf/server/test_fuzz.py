"""Whatever a body is, the answer is an answer or a refusal in one line, and the server lives."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.live_server import LiveServer, about, refusal

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["user", "text", "image_url", "data:image/png;base64,AAAA", "json_schema", "tiny"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "url", "schema", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("messages", "input", "model", "stream", "n", "stop", "seed", "temperature", "logprobs", "tools"),
        *("response_format", "text", "image_url", "max_tokens", "stream_options", "include", "unheard_of"),
    ]
)
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/images/preview")
START: dict[str, dict[str, Any]] = {
    PATHS[0]: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    PATHS[1]: {"input": "Hello", "max_output_tokens": 1},
    PATHS[2]: {"image_url": "data:image/png;base64,AAAA"},
}


def check(response: httpx.Response) -> None:
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        refusal(response, response.status_code)
        assert len(response.json()["error"]["message"]) < 1000


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), changes=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_bodies(server: LiveServer, path: str, changes: dict[str, Any]) -> None:
    body = json.dumps({**START[path], **changes}).encode()
    headers = {"Content-Type": "application/json"}
    check(httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60))


@pytest.mark.parametrize("depth", [100, 3_000, 300_000])
@pytest.mark.parametrize("form", ["%s", '{"messages": %s}', '{"input": "x", "tools": %s}'])
def test_deep_json(server: LiveServer, depth: int, form: str) -> None:
    for opened, closed in (("[", "]"), ('{"a": ', "}")):
        body = (form % (opened * depth + "0" + closed * depth)).encode()
        for path in PATHS:
            headers = {"Content-Type": "application/json"}
            response = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
            assert response.status_code == 400
            check(response)


def test_a_deep_schema(server: LiveServer) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    refusal(server.ask(messages=[{"role": "user", "content": "x"}], response_format=form), 400, "nested")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_bodies_that_a_page_could_send_without_asking_are_no_json(
    server: LiveServer, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    body = json.dumps(START[PATHS[0]]).encode()
    response = httpx.post(f"{server.url}{PATHS[0]}", content=body, headers=headers)
    assert refusal(response, 400, "application/json")["code"] == "invalid_json"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
    ],
    ids=range(6),
)
def test_heads_that_are_none(server: LiveServer, head: bytes) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((str(address.host), address.port or 0), timeout=60) as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            got = connection.recv(100)
        except OSError:  # it did not read to the end
            got = b""
    assert got == b"" or got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), got
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_connections_that_break_off_leave_nothing_behind(server: LiveServer, picture: Path) -> None:
    body = json.dumps({"messages": about(picture), "max_tokens": 1}).encode()
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    address = httpx.URL(server.url)
    for end in range(1, len(whole), len(whole) // 20):
        with socket.create_connection((str(address.host), address.port or 0), timeout=60) as connection:
            connection.sendall(whole[:end])
    assert server.ask(messages=about(picture), max_tokens=1).status_code == 200
    assert server.metrics()['acestep_open_answers{model="tiny"}'] == 0
