"""What a server lends, to whom, and how it says so; a client's side is in test_rpc_devices.py."""

import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from acestep_gguf.addresses import Address, rpc_addresses
from acestep_gguf.llama.rpc.handshake import RemoteDevice, ask_server
from scripts.checks.played_card import Card, wait_for
from tests.support.command_line import acestep, check_is_one_line
from tests.support.rpc_servers import environment, lent_memory

pytestmark = pytest.mark.slow

MIB = 2**20
GIB = 2**30

# Asks for buffers of so many bytes, one after the other, and frees what it got at its end.
CLIENT = """
import sys
from ctypes import c_size_t, c_void_p

from acestep_gguf.addresses import rpc_addresses
from acestep_gguf.llama.library import ggml_function
from acestep_gguf.llama.rpc.devices import connected_devices

(device,) = connected_devices(rpc_addresses(sys.argv[1]))
buffer_type = ggml_function("ggml_backend_dev_buffer_type", c_void_p, c_void_p)(device)
alloc = ggml_function("ggml_backend_buft_alloc_buffer", c_void_p, c_void_p, c_size_t)
free = ggml_function("ggml_backend_buffer_free", None, c_void_p)
buffers = [alloc(buffer_type, int(size)) for size in sys.argv[2:]]
print([buffer is not None for buffer in buffers])
if buffers[0] is not None:
    free(buffers[0])
"""

# Lends a GPU, one that is played, and a gibibyte less than it has.
LENDS_A_GPU = """
import sys
from pathlib import Path

from acestep_gguf.addresses import rpc_addresses
from acestep_gguf.llama.rpc.server import serve_devices
from scripts.checks.played_card import use_card

use_card(Path(sys.argv[1]), sys.argv[2])
(address,) = rpc_addresses(sys.argv[3])
show = lambda line: print(line, flush=True)
serve_devices(address, memory=0, gpu_reserve=2**30, n_threads=1, show=show)
"""


def ask_for(server: Card, *sizes: int) -> str:
    command = [sys.executable, "-c", CLIENT, server.endpoint, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(server))
    return done.stdout.strip()


def test_it_lends_what_it_may_and_no_more_and_has_it_back_from_a_client_that_is_gone() -> None:
    with lent_memory(10 * MIB) as server:
        (address,) = rpc_addresses(server.endpoint)
        assert ask_server(address) == [RemoteDevice(server.endpoint, 10 * MIB)]
        assert ask_for(server, 6 * MIB, 5 * MIB, 4 * MIB) == "[True, False, True]"
        assert (server.granted(), server.refused()) == ([6 * MIB, 4 * MIB], [5 * MIB])
        assert ask_server(address) == [RemoteDevice(server.endpoint, 10 * MIB)]
        assert ask_for(server, 11 * MIB, 10 * MIB, 1) == "[False, True, False]"
        assert server.most_held == 10 * MIB


def test_everybody_may_use_it_only_if_that_was_allowed() -> None:
    check_is_one_line(
        acestep("rpc-server", "--host", "0.0.0.0"), "everybody who reaches 0.0.0.0", "--insecure"
    )
    check_is_one_line(acestep("rpc-server", "-H", "example.com"), "everybody who reaches example.com")


def test_what_it_cannot_do_is_a_sentence() -> None:
    with lent_memory(MIB) as server:
        port = server.endpoint.partition(":")[2]
        env = environment(server)
        done = acestep("rpc-server", "--port", port, env=env)
        check_is_one_line(done, f"127.0.0.1:{port} cannot be listened on", "give another --host or --port")
        done = acestep("rpc-server", "--device", "CPU,CUDA7", env=env)
        check_is_one_line(done, "there is no device CUDA7: choose from CPU")
        done = acestep("rpc-server", "--memory", "12", env=env)
        check_is_one_line(done, "--memory is '12': give a size with its unit")
        done = acestep("rpc-server", "-t", "0", env=env)
        check_is_one_line(done, "threads is 0")
        done = acestep("rpc-server", "--insecure", "-H", "203.0.113.7", env=env)
        check_is_one_line(done, "203.0.113.7:50052 cannot be listened on")
        assert ask_server(Address("127.0.0.1", int(port))), "none of them disturbed it"


def test_a_client_that_speaks_something_else_is_left() -> None:
    with lent_memory(MIB) as server:
        (address,) = rpc_addresses(server.endpoint)
        for said in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 100):
            with socket.create_connection(address) as stranger:
                stranger.settimeout(30)
                stranger.sendall(said)
                with suppress(ConnectionResetError):  # what was said and not read resets it
                    assert stranger.recv(1) == b""
        assert ask_server(address) == [RemoteDevice(server.endpoint, MIB)]


def test_a_gpu_is_lent_rather_than_the_cpu_and_keeps_its_reserve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = Address("127.0.0.1", probe.getsockname()[1])
    with lent_memory(3 * GIB) as card:
        command = [sys.executable, "-c", LENDS_A_GPU, str(card.library), card.endpoint, str(address)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(card)) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == f"RPC0 with 2.1 GB for {address}\n"
                wait_for(process, str(address))
                assert ask_server(address) == [RemoteDevice(str(address), 2 * GIB)]
            finally:
                process.kill()
