"""``acestep-gguf rpc-server``: lend this machine's memory to a decoder that is larger than another one's."""

import os
import sys
from typing import Annotated

import typer

from acestep_gguf.cli.options import Threads, Verbose


def rpc_server(
    *,
    host: Annotated[
        str,
        typer.Option("-H", "--host", metavar="ADDRESS", help="By default only this machine reaches it."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="Port of it.")] = 50052,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="RAM to lend, such as 12GiB. By default what is free."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            *("-d", "--device"),
            metavar="NAMES",
            help="ggml's names, with commas. By default GPUs, else CPU.",
        ),
    ] = None,
    threads: Threads = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let everybody in who reaches the address.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Lend memory to a decoder that is larger than one machine's.

    Another machine names this one with --rpc, and this one computes what lies here. One client at a time.
    Nothing is encrypted, and nobody is asked who they are.
    """
    from acestep_gguf.addresses import Address
    from acestep_gguf.llama.params import MOST_THREADS
    from acestep_gguf.llama.rpc.server import serve_devices
    from acestep_gguf.options import check_integer
    from acestep_gguf.plan.machine import PROCESS_BYTES, this_machine
    from acestep_gguf.plan.memory import GPU_RESERVE
    from acestep_gguf.sizes import parse_size

    if not verbose:  # ggml writes about every connection, of which a client makes a dozen
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    machine = this_machine()
    n_threads = machine.n_threads if threads is None else threads
    check_integer("threads", n_threads, 1, MOST_THREADS)
    serve_devices(
        Address(host, port),
        memory=machine.ram - PROCESS_BYTES if memory is None else parse_size(memory, "--memory"),
        gpu_reserve=GPU_RESERVE,
        n_threads=n_threads,
        devices=device.split(",") if device else (),
        insecure=insecure,
        show=lambda line: print(line, file=sys.stderr, flush=True),
    )
