"""What is asked of a server before llama.cpp speaks with it, of strangers on free ports of this machine."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.addresses import Address
from acestep_gguf.errors import RpcServerError
from acestep_gguf.llama.rpc.handshake import RemoteDevice, ask_server

GIB = 2**30
HELLO = bytes([7, 0, 0, 0]) + bytes(24)
Answers = list[bytes]


@contextmanager
def listening(speak: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that speaks with one client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with server.accept()[0] as client:
                try:
                    speak(client)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):  # until it has gone: else it is reset
                        pass
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield Address("127.0.0.1", server.getsockname()[1])
        with socket.socket() as knock:  # if nobody came
            knock.settimeout(1)
            knock.connect_ex(server.getsockname())
        thread.join()


def answering(answers: Answers) -> Callable[[socket.socket], None]:
    """Speak the protocol: an answer for each command, whatever it is."""

    def speak(client: socket.socket) -> None:
        for answer in answers:
            head = client.recv(9, socket.MSG_WAITALL)
            if len(head) < 9:
                return
            client.recv(struct.unpack("<Q", head[1:])[0], socket.MSG_WAITALL)
            client.sendall(struct.pack("<Q", len(answer)) + answer)

    return speak


def device(*, free: int = GIB, total: int = 2 * GIB, alignment: int = 32, most: int = 2**64 - 1) -> Answers:
    return [struct.pack("<QQ", free, total), struct.pack("<Q", alignment), struct.pack("<Q", most)]


def count(n_devices: int) -> bytes:
    return struct.pack("<I", n_devices)


def test_what_a_server_has() -> None:
    with listening(answering([HELLO, count(1), *device()])) as address:
        assert ask_server(address) == [RemoteDevice(str(address), GIB)]
    two = [*device(), *device(free=2 * GIB, most=GIB // 2)]
    with listening(answering([HELLO, count(2), *two])) as address:
        assert ask_server(address) == [
            RemoteDevice(f"{address} (1 of 2)", GIB),
            RemoteDevice(f"{address} (2 of 2)", GIB // 2),
        ]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([bytes([6, 0, 3, 0]) + bytes(24)], r"speaks version 6\.0 of .* here it is 7\.0: install"),
        ([bytes([7, 1, 0, 0]) + bytes(24)], r"speaks version 7\.1 of "),
        ([bytes([7, 0, 0])], "is no RPC server of this version"),
        ([b""], "is no RPC server of this version"),
        ([], "is no RPC server of this version"),
        ([HELLO], "is no RPC server of this version"),
        ([HELLO, count(0)], "claims 0 devices"),
        ([HELLO, count(2**32 - 1)], "claims 4294967295 devices"),
        ([HELLO, count(1), *device(total=2**60)], "claims .* bytes of memory"),
        ([HELLO, count(1), *device(free=3 * GIB)], "claims .* bytes of memory"),
        ([HELLO, count(1), *device(alignment=0)], "claims an alignment of 0"),
        ([HELLO, count(1), *device(alignment=48)], "claims an alignment of 48"),
        ([HELLO, count(1), *device(alignment=2**40)], "claims an alignment"),
        ([HELLO, count(1), *device()[:2]], "is no RPC server of this version"),
    ],
)
def test_a_server_that_llama_cpp_would_end_the_process_on_is_a_sentence(answers: Answers, words: str) -> None:
    with listening(answering(answers)) as address, pytest.raises(RpcServerError, match=words):
        ask_server(address)


def test_a_length_that_was_not_expected_is_not_read() -> None:
    def speak(client: socket.socket) -> None:
        client.sendall(struct.pack("<Q", 2**62))

    with listening(speak) as address, pytest.raises(RpcServerError, match="is no RPC server"):
        ask_server(address)


@given(st.binary(max_size=200))
@settings(max_examples=40)
def test_whatever_a_stranger_says_is_a_sentence(said: bytes) -> None:
    with listening(lambda client: client.sendall(said)) as address, pytest.raises(RpcServerError):
        ask_server(address)


def test_a_silent_server_and_one_that_lets_bytes_drip_are_left_in_time() -> None:
    def silent(client: socket.socket) -> None:
        client.recv(2**20, socket.MSG_WAITALL)

    def dripping(client: socket.socket) -> None:
        for _ in range(200):
            client.sendall(b"\0")
            threading.Event().wait(0.05)

    for speak in (silent, dripping):
        with listening(speak) as address, pytest.raises(RpcServerError, match="does not answer"):
            ask_server(address, within_s=0.3)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
    with pytest.raises(RpcServerError, match="cannot be reached"):
        ask_server(address)
    for name in ("no.such.host.invalid", "a..b", "x" * 70):
        with pytest.raises(RpcServerError, match="cannot be reached"):
            ask_server(Address(name, 50052))
