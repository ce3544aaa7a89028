"""What a server may do, and for whom."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_gguf.errors import UsageError
from acestep_gguf.options import check_integer

MOST_CHOICES: Final = 8
MAX_SCHEMA_BYTES: Final = 64 * 2**10
# A token of a vocabulary is seldom longer; what has more bytes than fit is not even tokenized.
MAX_TOKEN_BYTES: Final = 64


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, whom it lets in, and how much one request may take.

    Args:
        host: address to bind to.
        port: of it; 0 takes a free one.
        api_keys: one of them has to come with each request; none are needed if there are none.
        insecure: let everybody in who reaches an address that is not this machine's own.
        allowed_hosts: names of this server in requests, beside IP addresses and localhost.
        allowed_origins: web pages of others that may ask, such as "https://example.com".
        allow_path: folder of which pictures may be asked about by file: URLs.
        ssl_cert_file, ssl_key_file: of TLS.
        max_body: bytes of a request.
        max_images: pictures of a request.
        max_pixels: of a picture.
        max_tokens: of an answer; a request that asks for more gets as many.
        queue: requests that wait for a place.
        timeout_s: after so many seconds an answer is cut.
        drain_s: seconds that running answers have left when the server is stopped.
        head_within_s: seconds in which the head of a request has to come.
        body_within_s: seconds in which the body of a request has to come, all of it.
        exact: as in AnswerOptions.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_path: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    max_body: int = 64 * 2**20
    max_images: int = 16
    max_pixels: int = 50 * 10**6
    max_tokens: int = 4096
    queue: int = 32
    timeout_s: float = 600.0
    drain_s: float = 30.0
    head_within_s: float = 20.0
    body_within_s: float = 60.0
    exact: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("port", 0, 65535),
            ("max_body", 1024, 2**31),
            ("max_images", 0, 1000),
            ("max_pixels", 1, 100 * 10**6),
            ("max_tokens", 1, 2**31 - 1),
            ("queue", 0, 10_000),
        ):
            check_integer(name, getattr(self, name), least, most)
        for name in ("timeout_s", "drain_s", "head_within_s", "body_within_s"):
            if not 0 <= getattr(self, name) <= 86400:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give seconds.", settings=[name])
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise UsageError("an API key is empty or not printable ASCII: choose another one.")
        if not (is_loopback(self.host) or self.api_keys or self.insecure):
            raise UsageError(
                f"everybody who reaches {self.host} could ask: set a key with --api-key-file or "
                "ACESTEP_GGUF_API_KEY, or let everybody in with --insecure."
            )
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise UsageError(
                "TLS needs both a certificate and its key: give --ssl-cert-file, --ssl-key-file."
            )
        for file in (self.ssl_cert_file, self.ssl_key_file):
            if file is not None and not file.is_file():
                raise UsageError(f"{file} is not a file: give the certificate and its key as PEM files.")
        if self.allow_path is not None and not self.allow_path.is_dir():
            raise UsageError(f"{self.allow_path} is not a folder: give one with pictures.")
        for origin in self.allowed_origins:
            if "://" not in origin or origin.endswith("/"):
                raise UsageError(f"{origin!r} is no origin: write it as in https://example.com.")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
