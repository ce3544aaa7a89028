"""A GPU that a process plays, on any machine: `acestep-gguf rpc-server`, which grants only so much memory.

    python -m scripts.checks.played_card --memory 12GiB run BUNDLE --image PICTURE "What is it?"

runs a verb of acestep-gguf with such a card, and prints what the card granted. llama.cpp sees a device with
memory of its own, and treats it as it treats CUDA's: layers and KV cache go there, weights that stay in RAM
are not repacked, and long prompts are multiplied with them on the card.
"""

import argparse
import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acestep_gguf.llama.backend import backend
from acestep_gguf.sizes import parse_size
from scripts.checks.rpc_library import rpc_library

ROOT: Final = Path(__file__).parents[2]
MODULE: Final = "scripts.checks.played_card"


@dataclass(frozen=True)
class Card:
    """A card that is being played; one process at a time can use it."""

    library: Path
    endpoint: str
    log: Path
    process_id: int

    def command(self, *arguments: str) -> list[str]:
        """``acestep-gguf`` with these arguments, in a process that has the card."""
        return [sys.executable, "-m", MODULE, "--use", str(self.library), self.endpoint, *arguments]

    def granted(self) -> list[int]:
        """Bytes of all buffers that were granted so far, in order."""
        return self._logged("granted")

    def refused(self) -> list[int]:
        """Bytes of all that were refused."""
        return self._logged("refused")

    @property
    def most_held(self) -> int:
        """Bytes of the buffers that there were at the fullest moment."""
        held = most = 0
        for verb, n_bytes in self._lines():
            if verb in ("granted", "freed"):
                held += n_bytes if verb == "granted" else -n_bytes
                most = max(most, held)
        return most

    def _logged(self, wanted: str) -> list[int]:
        return [n_bytes for verb, n_bytes in self._lines() if verb == wanted]

    def _lines(self) -> Iterator[tuple[str, int]]:
        """What the server says of buffers, in order: "granted 1024 bytes, …"."""
        for line in self.log.read_text().splitlines():
            verb, _, rest = line.partition(" ")
            if verb in ("granted", "refused", "freed"):
                yield verb, int(rest.split()[0])


@contextmanager
def play_card(memory: int, *, n_threads: int = 1) -> Iterator[Card]:
    """A card with ``memory`` bytes, on a free port of this machine.

    Raises:
        CalledProcessError, OSError: as ``rpc_library``.
    """
    library = rpc_library()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "-m", "acestep_gguf", "rpc-server", "--port", endpoint.partition(":")[2]]
        command += ["--memory", f"{memory}B", "--threads", str(n_threads)]
        # Where two processes share few cores, neither may spin while it waits.
        environment = {"OMP_WAIT_POLICY": "passive", "LLAMA_CPP_LIB_PATH": str(library.parent)}
        with log.open("w") as opened:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=opened, cwd=ROOT, env={**os.environ, **environment}
            )
        try:
            wait_for(process, endpoint)
            yield Card(library, endpoint, log, process.pid)
        finally:
            process.kill()
            process.wait()


def wait_for(process: "subprocess.Popen[Any]", endpoint: str) -> None:
    """Wait until a server listens.

    Raises:
        OSError: it has ended.
    """
    host, _, port = endpoint.partition(":")
    while process.poll() is None:
        with suppress(OSError), socket.create_connection((host, int(port))):
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise OSError(f"the server ended with {process.returncode}")


def use_card(library: Path, endpoint: str) -> None:
    """Give llama.cpp in this process the card as a GPU, for good. The process ends with the card."""
    backend()  # the library is linked to ggml's by name: those that are loaded already
    ctypes.CDLL(str(library)).use_card(endpoint.encode())


def main(words: Sequence[str]) -> int:
    if words[:1] == ["--use"]:
        from acestep_gguf.cli import main as run_verb  # noqa: PLC0415 (of this process only)

        use_card(Path(words[1]), words[2])
        sys.argv = ["acestep-gguf", *words[3:]]
        run_verb()
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", required=True, help="of the card, such as 12GiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("verb", nargs=argparse.REMAINDER, help="of acestep-gguf, and its arguments")
    arguments = parser.parse_args(words)
    memory = parse_size(arguments.memory, "--memory")
    with play_card(memory, n_threads=arguments.threads) as card:
        done = subprocess.run(card.command(*arguments.verb), check=False)
        print(
            f"buffers of the card: {', '.join(f'{n:,}' for n in card.granted())} bytes; "
            f"at most {card.most_held:,} of {memory:,} at a time",
            file=sys.stderr,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
