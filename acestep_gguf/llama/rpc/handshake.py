"""What an RPC server says of itself, asked before llama.cpp does, which ends the process on any surprise.

A command of ggml-rpc.cpp is a byte, the length of what follows as eight bytes, and that; an answer is its
length and itself. What is asked here has answers of fixed lengths: one of another length is not read.
"""

import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from acestep_gguf.addresses import Address, reason
from acestep_gguf.errors import RpcServerError

# RPC_PROTO_MAJOR_VERSION and _MINOR_VERSION of ggml-rpc.h in llama-cpp-python 0.3.36, and some of rpc_cmd.
PROTOCOL: Final = (7, 0)
GET_ALIGNMENT: Final = 1
GET_MAX_SIZE: Final = 2
GET_DEVICE_MEMORY: Final = 11
HELLO: Final = 14
DEVICE_COUNT: Final = 15

HEAD: Final = struct.Struct("<BQ")
LENGTH: Final = struct.Struct("<Q")
DEVICE: Final = struct.Struct("<I")
NO_CAPABILITIES: Final = bytes(24)  # of RDMA, which needs a connection of its own

MOST_DEVICES: Final = 16
MOST_BYTES: Final = 2**50
MOST_ALIGNMENT: Final = 2**16
WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RemoteDevice:
    """A device of a server: how people call it, and bytes of its memory that are free."""

    name: str
    memory: int


def ask_server(address: Address, *, within_s: float = WAIT_S) -> list[RemoteDevice]:
    """The devices of a server, in its order; it is free for the next client afterwards.

    Raises:
        RpcServerError: it is not there, does not answer in ``within_s`` seconds (which is what a busy one
            does), is of another version, speaks something else, or claims what cannot be.
    """
    try:
        with _Connection(address, within_s) as server:
            major, minor, _ = server.ask(HELLO, NO_CAPABILITIES, struct.Struct("<BBB25x"))
            if major != PROTOCOL[0] or minor > PROTOCOL[1]:
                raise RpcServerError(
                    f"the RPC server {address} speaks version {major}.{minor} of llama.cpp's protocol, here "
                    f"it is {PROTOCOL[0]}.{PROTOCOL[1]}: install the same llama-cpp-python on both sides."
                )
            (n_devices,) = server.ask(DEVICE_COUNT, b"", struct.Struct("<I"))
            if not 1 <= n_devices <= MOST_DEVICES:
                raise _unsound(address, f"{n_devices} devices")
            return [_device(server, address, number, n_devices) for number in range(n_devices)]
    except TimeoutError as error:
        raise RpcServerError(
            f"the RPC server {address} does not answer: it has another client, and has one at a time, or "
            "nothing gets through to it."
        ) from error
    except (OSError, UnicodeError) as error:
        raise RpcServerError(
            f"the RPC server {address} cannot be reached ({reason(error)}): start `acestep-gguf rpc-server` "
            "there."
        ) from error


def _device(server: "_Connection", address: Address, number: int, n_devices: int) -> RemoteDevice:
    request = DEVICE.pack(number)
    free, total = server.ask(GET_DEVICE_MEMORY, request, struct.Struct("<QQ"))
    (alignment,) = server.ask(GET_ALIGNMENT, request, LENGTH)
    (max_size,) = server.ask(GET_MAX_SIZE, request, LENGTH)
    if not free <= total <= MOST_BYTES:
        raise _unsound(address, f"{free} of {total} bytes of memory")
    if not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise _unsound(address, f"an alignment of {alignment}")
    name = str(address) if n_devices == 1 else f"{address} ({number + 1} of {n_devices})"
    return RemoteDevice(name, min(free, max_size))


def _unsound(address: Address, claim: str) -> RpcServerError:
    return RpcServerError(f"the RPC server {address} claims {claim}: do not trust it.")


class _Connection:
    """A connection that ends at a time that is set at its beginning, however slowly bytes come."""

    def __init__(self, address: Address, within_s: float) -> None:
        self._address = address
        self._deadline = time.monotonic() + within_s
        self._socket = socket.create_connection(address.numeric(), within_s)

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: int, request: bytes, answer: struct.Struct) -> tuple[int, ...]:
        """The numbers of an answer.

        Raises:
            RpcServerError: it has another length, or none comes.
            OSError: the connection is lost; TimeoutError: the time is over.
        """
        try:
            self._socket.sendall(HEAD.pack(command, len(request)) + request)
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            data = self._read(answer.size) if length == answer.size else b""
        except ConnectionError:  # closed in the middle, with an error or without one
            data = b""
        if len(data) != answer.size:
            raise RpcServerError(
                f"{self._address} is no RPC server of this version of llama.cpp: start `acestep-gguf "
                "rpc-server` there, with the same llama-cpp-python as here."
            )
        return answer.unpack(data)

    def _read(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            got = self._socket.recv(n_bytes - len(data))
            if not got:
                raise ConnectionResetError
            data += got
        return data
