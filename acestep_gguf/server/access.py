"""Who may ask, from where, and how much: looked at before anything of a request is read.

A web page that somebody happens to open can send requests to this machine's own addresses. So what names a
host is checked (a page that rebinds its name to 127.0.0.1 still sends its name), and what comes from another
origin is refused. Neither needs a key, which is for all others.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acestep_gguf.server.errors import ApiError
from acestep_gguf.server.settings import ServerSettings

HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::\d{1,5})?")
BODIES_AT_ONCE: Final = 4  # of the largest size
# What needs a key; the rest are the page's files, and /health, which a watchdog asks.
WITH_KEY: Final = ("/v1/", "/metrics", "/openapi.json")

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Access:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._keys = [_digest(key.encode()) for key in settings.keys]
        self._hosts = {"localhost", settings.host.lower(), *map(str.lower, settings.allowed_hosts)}
        self._n_held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # there are no websockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                added = MutableHeaders(scope=message)
                added.update(SECURITY_HEADERS)
                if origin is not None and origin in self._settings.allowed_origins:
                    added["Access-Control-Allow-Origin"] = origin
                    added["Cross-Origin-Resource-Policy"] = "cross-origin"
                    added.add_vary_header("Origin")
            await send(message)

        try:
            self._check_host(headers)
            self._check_origin(headers)
            if scope["method"] == "OPTIONS":
                return await _preflight(send_with_headers)
            self._check_key(scope["path"], headers)
            body = _Body(self, headers, receive, self._settings.body_within_s)
            try:
                await self._app(scope, body.receive, send_with_headers)
            finally:
                self._n_held -= body.n_bytes
        except ApiError as error:
            if has_begun:
                raise
            await error.response()(scope, receive, send_with_headers)
        return None

    def hold(self, n_bytes: int) -> None:
        """Count bytes of a body.

        Raises:
            ApiError: there are too many at once.
        """
        if self._n_held + n_bytes > BODIES_AT_ONCE * self._settings.max_body_bytes:
            raise ApiError(429, "too many large requests at a time: ask again.", retry_after=5)
        self._n_held += n_bytes

    def check_length(self, n_bytes: int) -> None:
        """Refuse a body that is too long."""
        if n_bytes > self._settings.max_body_bytes:
            raise ApiError(
                413,
                f"the request is larger than {self._settings.max_body_bytes} bytes: send smaller pictures.",
            )

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        found = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        name = found[1].strip("[]").lower().removesuffix(".") if found else ""
        if name not in self._hosts and not _is_address(name):
            raise ApiError(
                403, "this server is not known by that name: start it with --allowed-host.", code="bad_host"
            )

    def _check_origin(self, headers: Headers) -> None:
        for origin in headers.getlist("origin"):
            own = origin.lower().partition("://")[2] == headers["host"].lower()
            if not own and origin not in self._settings.allowed_origins:
                raise ApiError(
                    403, "pages of this origin may not ask: start with --allowed-origin.", code="bad_origin"
                )

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or not path.startswith(WITH_KEY):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        # All are compared, however the first ones come out.
        is_right = sum(hmac.compare_digest(given, known) for known in self._keys)
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401, "the API key is missing or wrong: send it as a bearer.", code="invalid_api_key"
            )


class _Body:
    """The body of one request, counted as it comes, which it has to within seconds from now."""

    def __init__(self, access: Access, headers: Headers, receive: Receive, within_s: float) -> None:
        length = headers.get("content-length", "0")
        access.check_length(int(length) if length.isdecimal() and len(length) < 20 else 0)
        self.n_bytes = 0
        self._access = access
        self._receive = receive
        self._is_whole = False
        self._give_up_at = asyncio.get_running_loop().time() + within_s

    async def receive(self) -> Message:
        if self._is_whole:  # what may still come is that the client leaves
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._give_up_at):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "the body of the request did not come in time.") from None
        if message["type"] == "http.request":
            part = len(message.get("body", b""))
            self._access.check_length(self.n_bytes + part)
            self._access.hold(part)
            self.n_bytes += part
            self._is_whole = not message.get("more_body", False)
        return message


async def _preflight(send: Send) -> None:
    """What a browser asks before another origin's page may ask; the origin was checked."""
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, *",
        "Access-Control-Max-Age": "600",
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    """So that all are of one length."""
    return hashlib.sha256(key).digest()
