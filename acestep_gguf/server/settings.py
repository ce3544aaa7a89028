"""What a server may do, and for whom."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

from acestep_gguf.addresses import is_loopback
from acestep_gguf.errors import UsageError
from acestep_gguf.options import SERVER, Flag, check_integer
from acestep_gguf.sizes import parse_size

KEY_VARIABLE: Final = "ACESTEP_GGUF_API_KEY"
MAX_KEY_FILE_BYTES: Final = 2**16
MOST_CHOICES: Final = 8
MAX_SCHEMA_BYTES: Final = 64 * 2**10
# A token of a vocabulary is seldom longer; what has more bytes than fit is not even tokenized.
MAX_TOKEN_BYTES: Final = 64


def _flag(name: str, *, help: str, metavar: str | None = None, default: Any = None) -> Flag:
    return Flag((name,), help, SERVER, default, metavar)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, whom it lets in, and how much one request may take.

    Args:
        host: address to bind to.
        port: of it; 0 takes a free one.
        api_keys: one of them has to come with each request, or that in ACESTEP_GGUF_API_KEY.
        api_key_file: more of them, one on each line. If there are none at all, requests need none.
        insecure: let everybody in who reaches an address that is not this machine's own.
        allowed_hosts: names of this server in requests, beside IP addresses and localhost.
        allowed_origins: web pages of others that may ask, such as "https://example.com".
        allow_path: folder of which pictures may be asked about by file: URLs.
        ssl_cert_file, ssl_key_file: of TLS.
        max_body: bytes of a request, or their size with its unit.
        max_images: pictures of a request.
        max_pixels: of a picture.
        max_answer_tokens: of an answer; a request that asks for more gets as many.
        queue: requests that wait for a place.
        timeout_s: after so many seconds an answer is cut.
        drain_s: seconds that running answers have left when the server is stopped.
        head_within_s: seconds in which the head of a request has to come.
        body_within_s: seconds in which the body of a request has to come, all of it.
        exact: as in AnswerOptions.

    Raises:
        UsageError: one is out of its range, or everybody could ask.
    """

    host: Annotated[
        str,
        _flag("--host", metavar="ADDRESS", help="Address. By default only this machine reaches it."),
    ] = "127.0.0.1"
    port: Annotated[int, _flag("--port", help="Port of it; 0 takes a free one.")] = 8080
    api_keys: Annotated[
        Sequence[str],
        _flag(
            "--api-key",
            metavar="KEY",
            help=f"Key that requests must have; repeat for more. Others see it here: better {KEY_VARIABLE}.",
        ),
    ] = ()
    api_key_file: Annotated[
        Path | None, _flag("--api-key-file", metavar="FILE", help="File of keys, one a line.")
    ] = None
    insecure: Annotated[
        bool, _flag("--insecure", help="Let everybody in who reaches the address, without a key.")
    ] = False
    allowed_hosts: Annotated[
        Sequence[str],
        _flag("--allowed-host", metavar="NAME", help="Name by which this server is reached; repeat."),
    ] = ()
    allowed_origins: Annotated[
        Sequence[str],
        _flag("--allowed-origin", metavar="ORIGIN", help="Web page that may ask: https://…; repeat."),
    ] = ()
    allow_path: Annotated[
        Path | None,
        _flag("--allow-path", metavar="FOLDER", help="Folder whose pictures file: URLs may name."),
    ] = None
    ssl_cert_file: Annotated[
        Path | None, _flag("--ssl-cert-file", metavar="FILE", help="Certificate for TLS, as PEM.")
    ] = None
    ssl_key_file: Annotated[
        Path | None, _flag("--ssl-key-file", metavar="FILE", help="Its private key, as PEM.")
    ] = None
    max_body: Annotated[
        int | str, _flag("--max-body", metavar="SIZE", help="Size of a request at most.", default="64MiB")
    ] = 64 * 2**20
    max_images: Annotated[int, _flag("--max-images", help="Pictures of a request at most.")] = 16
    max_pixels: Annotated[int, _flag("--max-pixels", help="Pixels of a picture at most.")] = 50 * 10**6
    max_answer_tokens: Annotated[int, _flag("--max-tokens", help="Tokens of an answer at most.")] = 4096
    queue: Annotated[int, _flag("--queue", help="Requests that may wait for a place.")] = 32
    timeout_s: Annotated[float, _flag("--timeout", help="Seconds after which an answer is cut.")] = 600.0
    drain_s: Annotated[
        float, _flag("--drain", help="Seconds that running answers have when the server is stopped.")
    ] = 30.0
    head_within_s: float = 20.0
    body_within_s: float = 60.0
    exact: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_names()
        self._check_files()
        if not (is_loopback(self.host) or self.keys or self.insecure):
            raise UsageError(
                f"everybody who reaches {self.host} could ask: set a key with api_key_file or "
                f"{KEY_VARIABLE}, or let everybody in with insecure=True.",
                settings=["api_key_file", "insecure"],
            )

    def _check_numbers(self) -> None:
        for name, value, least, most in (
            ("port", self.port, 0, 65535),
            ("max_body", self.max_body_bytes, 1024, 2**31),
            ("max_images", self.max_images, 0, 1000),
            ("max_pixels", self.max_pixels, 1, 100 * 10**6),
            ("max_answer_tokens", self.max_answer_tokens, 1, 2**31 - 1),
            ("queue", self.queue, 0, 10_000),
        ):
            check_integer(name, value, least, most)
        for name in ("timeout_s", "drain_s", "head_within_s", "body_within_s"):
            if not 0 <= getattr(self, name) <= 86400:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give seconds.", settings=[name])

    def _check_names(self) -> None:
        for setting, names in (("host", [self.host]), ("allowed_hosts", self.allowed_hosts)):
            if not all(map(str.strip, names)):
                raise UsageError(f"{setting} is empty: give a name or an address.", settings=[setting])
        for origin in self.allowed_origins:
            if "://" not in origin or origin.endswith("/"):
                raise UsageError(f"{origin!r} is no origin: write it as in https://example.com.")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.keys):
            raise UsageError("an API key is empty or not printable ASCII: choose another one.")

    def _check_files(self) -> None:
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise UsageError(
                "TLS needs both a certificate and its key: give ssl_cert_file and ssl_key_file.",
                settings=["ssl_cert_file", "ssl_key_file"],
            )
        for file in (self.ssl_cert_file, self.ssl_key_file):
            if file is not None and not file.is_file():
                raise UsageError(f"{file} is not a file: give the certificate and its key as PEM files.")
        if self.allow_path is not None and not self.allow_path.is_dir():
            raise UsageError(f"{self.allow_path} is not a folder: give one with pictures.")

    @cached_property
    def max_body_bytes(self) -> int:
        """``max_body`` in bytes."""
        if isinstance(self.max_body, int):
            return self.max_body
        try:
            return parse_size(self.max_body, "max_body")
        except UsageError as error:
            raise UsageError(str(error), settings=["max_body"]) from error

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All keys: given, of the environment, and of the file."""
        of_file = () if self.api_key_file is None else _read_keys(self.api_key_file)
        return (*self.api_keys, *filter(None, [os.environ.get(KEY_VARIABLE)]), *of_file)


def _read_keys(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            lines = opened.read(MAX_KEY_FILE_BYTES).decode("ascii").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise UsageError(f"{file} cannot be read ({reason}): give a file of keys.") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UsageError(f"{file} has no key in it: write one, or make it with `openssl rand -hex 32`.")
    return keys
