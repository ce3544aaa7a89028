"""A server on its address, until a signal ends it: no new requests then, and time for those that run."""

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn

from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.server.app import make_app
from acestep_gguf.server.connection import Connection
from acestep_gguf.server.loaded_models import Models
from acestep_gguf.server.settings import ServerSettings

SECONDS_TO_WRITE: Final = 5  # what was cut
MOST_CONNECTIONS: Final = 512
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def serve(
    folders: Sequence[Path],
    options: EngineOptions,
    settings: ServerSettings,
    *,
    show: Callable[[str], None] = print,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C; returns when all is ended.

    Args:
        folders: of the bundles; the first is loaded at once.
        options: how they are loaded.
        settings: of the server.
        show: gets the address, when requests are taken.

    Raises:
        AceStepError: they cannot be served, or the address cannot be used.
    """
    models = Models([*folders], options, settings)
    with _listening(settings) as listener:
        asyncio.run(_serve(models, settings, listener, show))


async def _serve(
    models: Models, settings: ServerSettings, listener: socket.socket, show: Callable[[str], None]
) -> None:
    config = uvicorn.Config(
        make_app(models, settings),
        http=partial(Connection, head_within_s=settings.head_within_s),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_level="error",  # a stranger could fill the log with warnings
        access_log=False,  # a path can have a secret in it
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        ssl_certfile=settings.ssl_cert_file,
        ssl_keyfile=settings.ssl_key_file,
        timeout_graceful_shutdown=int(settings.drain_s) + SECONDS_TO_WRITE,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"the TLS certificate and key cannot be used ({error.strerror}).") from error
    await models.load_first()
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl else "http"
    show(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    # uvicorn raises a signal again that ended it, which would end the process before it has ended all else.
    before = [(number, signal.signal(number, lambda *_: None)) for number in SIGNALS]
    try:
        await _Server(config, models.cancel_all, settings.drain_s).serve(sockets=[listener])
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        await models.close()


class _Server(uvicorn.Server):
    """Cuts answers that take too long when it is stopped."""

    def __init__(self, config: uvicorn.Config, cut: Callable[[], None], drain_s: float) -> None:
        super().__init__(config)
        self._cut = cut
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._cut)
        await super().shutdown(sockets)
        timer.cancel()


def _listening(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise UsageError(
            f"{settings.host}:{settings.port} cannot be listened on ({reason}): give another host or port.",
            settings=["port", "host"],
        ) from error
