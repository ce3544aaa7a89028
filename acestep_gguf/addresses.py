"""Addresses of servers: how they are written, and whom they let in."""

import ipaddress
import socket
from typing import Final, NamedTuple

from acestep_gguf.errors import UsageError

MOST_SERVERS: Final = 16  # GGML_RPC_MAX_SERVERS


class Address(NamedTuple):
    """A host, by its name or IPv4 address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def numeric(self) -> "Address":
        """The same with the number of the host, IPv4, which is all that llama.cpp knows.

        Raises:
            OSError, UnicodeError: no host has that name.
        """
        return Address(socket.gethostbyname(self.host), self.port)


def rpc_addresses(text: object) -> tuple[Address, ...]:
    """The servers that ``HOST:PORT[,HOST:PORT…]`` names.

    Raises:
        UsageError: it names none, one twice or more than llama.cpp takes, or is written in another way.
    """
    addresses = tuple(map(_address, text.split(",") if isinstance(text, str) else [repr(text)]))
    if len({*addresses}) < len(addresses) or len(addresses) > MOST_SERVERS:
        raise UsageError(
            f"rpc names a server twice, or more than {MOST_SERVERS}: name each once.", settings=["rpc"]
        )
    return addresses


def _address(text: str) -> Address:
    host, _, port = text.strip().partition(":")  # llama.cpp reads it so: IPv6 has no place in it
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        raise UsageError(
            f"rpc has {text!r}: write HOST:PORT, such as 127.0.0.1:50052, with commas between several.",
            settings=["rpc"],
        )
    return Address(host, int(port))


def reason(error: OSError | UnicodeError) -> str | None:
    """What is wrong with an address, in the system's words."""
    return error.strerror if isinstance(error, OSError) else "no host name"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
