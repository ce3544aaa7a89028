"""Server-sent events, and what becomes of a request whose client leaves."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from acestep_gguf.server.errors import ApiError, internal_error, log_failure

Result = TypeVar("Result")

# Until then, an error has a status of its own; after it, the stream has begun, and an error is an event.
BEGIN_AFTER_S: Final = 5.0
KEEP_ALIVE_S: Final = 15.0
HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events would hide that they come one by one
)


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


class EventStream(Response):
    """A response whose events are written as they come; closes their source when the client leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        left = asyncio.ensure_future(_until_left(receive))
        coming = asyncio.ensure_future(anext(self._events))
        has_begun = False

        async def write(data: bytes) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            while True:
                wait = KEEP_ALIVE_S if has_begun else BEGIN_AFTER_S
                await asyncio.wait({left, coming}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    return
                if not coming.done():
                    await write(b": still working\n\n")
                    continue
                try:
                    await write(coming.result())
                except StopAsyncIteration:
                    break
                except ApiError as error:
                    if not has_begun:
                        raise
                    await write(event(error.body()))
                    break
                coming = asyncio.ensure_future(anext(self._events))
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            coming.cancel()
            await asyncio.wait({left, coming})
            await self._events.aclose()


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        ClientLeft: it has.
    """
    left = asyncio.ensure_future(_until_left(request.receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({left, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        left.cancel()
        working.cancel()
        await asyncio.wait({left, working})


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_api_error(error: Exception) -> ApiError:
    """What the client sees of an exception that nobody expected."""
    log_failure(error)
    return internal_error()
