"""A stream whose first piece takes long, and what becomes of its source."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.types import Message

from acestep_gguf.server import event_stream
from acestep_gguf.server.errors import ApiError
from acestep_gguf.server.event_stream import EventStream, event
from tests.support import event_loop


class Client:
    """Receives a stream, until it leaves."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    async def sees(self, what: Callable[[list[Message]], bool]) -> None:
        while not what(self.messages):
            await asyncio.sleep(0)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def run(scenario: Any) -> None:
    event_loop.run(asyncio.wait_for(scenario, 30))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "BEGIN_AFTER_S", 0.001)
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.001)


def test_it_begins_without_its_first_piece() -> None:
    async def scenario() -> None:
        client, ready = Client(), asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            await ready.wait()
            yield event({"a": 1})

        task = asyncio.ensure_future(EventStream(events())({}, client.receive, client.send))
        await client.sees(lambda messages: len(messages) > 3)
        assert client.messages[0]["status"] == 200
        assert set(client.body.split(b"\n\n")) == {b": still working", b""}
        ready.set()
        await task
        assert client.body.endswith(b'data: {"a":1}\n\n')
        assert not client.messages[-1].get("more_body", False)

    run(scenario())


def test_an_error_after_its_beginning_is_an_event() -> None:
    async def scenario() -> None:
        client, ready = Client(), asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            await ready.wait()
            raise ApiError(400, "no.", code="bad")
            yield b""

        task = asyncio.ensure_future(EventStream(events())({}, client.receive, client.send))
        await client.sees(bool)
        ready.set()
        await task
        assert b'data: {"error":{"message":"no."' in client.body

    run(scenario())


def test_an_error_before_it_is_the_response() -> None:
    async def scenario() -> None:
        client = Client()

        async def events() -> AsyncGenerator[bytes, None]:
            raise ApiError(400, "no.")
            yield b""

        with pytest.raises(ApiError):
            await EventStream(events())({}, client.receive, client.send)
        assert client.messages == []

    run(scenario())


@pytest.mark.parametrize("has_begun", [False, True])
def test_who_leaves_closes_the_source(has_begun: bool) -> None:
    async def scenario() -> None:
        client, closed = Client(), asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            try:
                if has_begun:
                    yield event({})
                await asyncio.Event().wait()
            finally:
                closed.set()

        task = asyncio.ensure_future(EventStream(events())({}, client.receive, client.send))
        await client.sees(bool)
        client.left.set()
        await task
        assert closed.is_set()

    run(scenario())
