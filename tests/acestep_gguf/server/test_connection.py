"""How long a connection waits for a request, at real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from acestep_gguf.server.access import Access
from acestep_gguf.server.connection import Connection
from acestep_gguf.server.settings import ServerSettings
from tests.support import event_loop

WHOLE = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab"
HALF_A_HEAD = WHOLE[:20]
SOON_S = 0.05


@asynccontextmanager
async def connected(
    app: ASGIApp, first: bytes, *, head_within_s: float = SOON_S
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of ``app``. ``first`` is there when it is accepted, and so is read before any time is up."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_level="error", access_log=False)
    accept = partial(
        Connection, config=config, server_state=ServerState(), app_state={}, head_within_s=head_within_s
    )
    listener = socket.create_server(("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(first)
    async with await asyncio.get_running_loop().create_server(accept, sock=listener):
        yield reader, writer
        writer.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    event_loop.run(asyncio.wait_for(scenario, 30))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


@pytest.mark.parametrize("head", [b"", HALF_A_HEAD])
def test_a_head_that_does_not_come_ends_the_connection(head: bytes) -> None:
    async def scenario() -> None:
        async with connected(echo, head) as (reader, _):
            assert await reader.read() == b""

    run(scenario())


def test_a_head_that_comes_line_by_line_has_no_more_time() -> None:
    async def scenario() -> None:
        async with connected(echo, b"GET / HTTP/1.1\r\n") as (reader, writer):
            end = asyncio.ensure_future(reader.read())
            while not end.done():
                writer.write(b"X: y\r\n")
                await asyncio.wait({end}, timeout=0.005)
            with suppress(ConnectionResetError):  # there are lines that nobody reads
                assert await end == b""

    run(scenario())


def test_the_head_of_a_second_request_has_to_come_too() -> None:
    async def scenario() -> None:
        async with connected(echo, WHOLE) as (reader, writer):
            await reader.readuntil(b"2 bytes")
            writer.write(HALF_A_HEAD)
            assert await reader.read() == b""

    run(scenario())


def test_an_answer_may_take_longer_than_a_head() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(4 * SOON_S)
        await echo(scope, receive, send)

    async def scenario() -> None:
        async with connected(slow, WHOLE) as (reader, _):
            assert b" 200 " in await reader.readuntil(b"2 bytes")

    run(scenario())


def test_a_body_that_does_not_come_is_refused() -> None:
    async def scenario() -> None:
        access = Access(echo, ServerSettings(body_within_s=SOON_S))
        async with connected(access, WHOLE[:-1], head_within_s=30) as (reader, _):
            assert b" 408 " in await reader.readline()

    run(scenario())
