"""Layers on servers give the very numbers that the CPU gives; what is in their way is a sentence."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from acestep_gguf.bundle.names import DecoderFtype
from acestep_gguf.bundle.schema import Bundle
from scripts.checks.played_card import Card
from tests.support.rpc_servers import environment, lent_memory

pytestmark = pytest.mark.slow

GIB = 2**30

# A process of its own, which a lost server would end: for each line that it reads, the logits of a prompt and
# of three tokens after it with so many layers on the servers, the cache there or in RAM, as hexadecimal rows.
CHILD = """
import json, sys
from pathlib import Path

from acestep_gguf.addresses import rpc_addresses
from acestep_gguf.errors import AceStepError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams, ModelParams

path, rpc = Path(sys.argv[1]), rpc_addresses(sys.argv[2])
for line in sys.stdin:
    n_gpu_layers, offload_kqv, cpu_tensors = json.loads(line)
    params = ModelParams(n_gpu_layers=n_gpu_layers, cpu_tensors=tuple(cpu_tensors), rpc=rpc)
    try:
        model = Model(path, params)
    except AceStepError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        continue
    with model, Context(model, ContextParams(n_ctx=256, n_ubatch=32, offload_kqv=offload_kqv)) as context:
        prompt = [token % model.n_vocab for token in range(7, 7 + 3 * 70, 3)]
        context.decode_tokens(prompt, 0, n_outputs=1)
        rows = [context.logits()]
        for position in range(len(prompt), len(prompt) + 3):
            context.decode_tokens([int(rows[-1].argmax())], position, n_outputs=1)
            rows.append(context.logits())
        print("".join(row.tobytes().hex() for row in rows), flush=True)
        if n_gpu_layers == WAITS:
            print("waiting", flush=True)
            sys.stdin.readline()
            context.decode_tokens([1], len(prompt) + 3, n_outputs=1)
"""
WAITS = 5  # so many layers are all, as -1 is; the child then waits for a line
CHILD = CHILD.replace("WAITS", str(WAITS))

Load = tuple[int, bool, Sequence[str]]
LOADS: list[Load] = [
    (0, True, []),
    (2, True, []),
    (2, False, []),
    (-1, True, []),
    (-1, False, []),
    (-1, True, [r"blk\.(1|2)\.ffn_(gate|up|down)\.weight"]),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Card]]:
    with ExitStack() as stack:
        yield [stack.enter_context(lent_memory(GIB)) for _ in range(2)]


def decoder(folder: Path, ftype: DecoderFtype = "F16") -> Path:
    return folder / Bundle.read(folder).decoder(ftype).file


def child(path: Path, servers: Sequence[Card], endpoints: str | None = None) -> "subprocess.Popen[str]":
    names = endpoints or ",".join(server.endpoint for server in servers)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(servers[0]),
    )


def results(process: "subprocess.Popen[str]", loads: Sequence[Load]) -> list[str]:
    out, errors = process.communicate("".join(f"{json.dumps(load)}\n" for load in loads), timeout=120)
    assert process.returncode == 0, errors
    return out.splitlines()


@pytest.mark.parametrize("ftype", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("n_servers", [1, 2])
def test_logits_are_the_cpus_to_the_last_bit(
    four_layers: Path, servers: list[Card], ftype: DecoderFtype, n_servers: int
) -> None:
    used = servers[:n_servers]
    before = [len(server.granted()) for server in used]
    on_cpu, *on_servers = results(child(decoder(four_layers, ftype), used), LOADS)
    assert on_servers == [on_cpu] * len(on_servers)
    for server, n_before in zip(used, before, strict=True):
        assert len(server.granted()) > n_before
        assert server.refused() == []


def test_a_server_with_another_client_is_a_sentence_and_free_afterwards(
    four_layers: Path, servers: list[Card]
) -> None:
    first = child(decoder(four_layers), servers[:1])
    assert first.stdin
    assert first.stdout
    print(json.dumps((WAITS, True, [])), file=first.stdin, flush=True)
    logits = first.stdout.readline().strip()
    assert first.stdout.readline() == "waiting\n"
    (refused,) = results(child(decoder(four_layers), servers[:1]), [(-1, True, [])])
    assert refused.startswith(
        f"RpcServerError: the RPC server {servers[0].endpoint} does not answer: it has "
    )
    assert results(first, [(0, True, [])]) == []
    assert results(child(decoder(four_layers), servers[:1]), [(-1, True, [])]) == [logits]


def test_a_server_that_is_lost_ends_the_process_with_a_sentence(four_layers: Path) -> None:
    with lent_memory(GIB) as server:
        process = child(decoder(four_layers), [server])
        assert process.stdin
        assert process.stdout
        print(json.dumps((WAITS, True, [])), file=process.stdin, flush=True)
        process.stdout.readline()
        assert process.stdout.readline() == "waiting\n"
    out, errors = process.communicate("\n", timeout=120)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith("error: an RPC server was lost")
    assert errors.count("\n") == 1


def test_without_the_backend_a_sentence_says_how_to_get_it(four_layers: Path) -> None:
    code = "from acestep_gguf.llama.rpc.devices import remote_devices; remote_devices([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this llama.cpp was built with RPC")
    last = done.stderr.splitlines()[-1]
    assert "UsageError: rpc cannot be used: this llama.cpp was built without it. CMAKE_ARGS" in last
    assert "-DGGML_RPC=on" in last


def test_a_server_that_is_not_there_is_found_before_anything_is_loaded(
    four_layers: Path, servers: list[Card]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gone = f"127.0.0.1:{probe.getsockname()[1]}"
    before = len(servers[0].granted())
    (refused,) = results(
        child(decoder(four_layers), servers, f"{servers[0].endpoint},{gone}"), [(-1, True, [])]
    )
    assert refused.startswith(f"RpcServerError: the RPC server {gone} cannot be reached")
    assert len(servers[0].granted()) == before
