"""A GPU that a process plays, on any machine: ggml's RPC server on the CPU, which grants only so much memory.

    python -m scripts.checks.played_card --memory 12GiB run BUNDLE --image PICTURE "What is it?"

runs a verb of acestep-gguf with such a card, and prints what the card granted. llama.cpp sees a device with
memory of its own, and treats it as it treats CUDA's: layers and KV cache go there, weights that stay in RAM
are not repacked, and long prompts are multiplied with them on the card. The server comes from
llama-cpp-python's source package, and is compiled against the libraries that are installed.
"""

import argparse
import ctypes
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from filelock import FileLock

from acestep_gguf.llama.backend import backend
from acestep_gguf.llama.library import FOLDER
from acestep_gguf.sizes import parse_size
from scripts.bench.llama_cpp_tools import download_source

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / "build/played-card"
SOURCE: Final = Path(__file__).with_suffix(".cpp")
RPC_FILES: Final = ("ggml-rpc.cpp", "transport.cpp")
MODULE: Final = "scripts.checks.played_card"


@dataclass(frozen=True)
class Card:
    """A card that is being played; one process at a time can use it."""

    library: Path
    endpoint: str
    log: Path

    def command(self, *arguments: str) -> list[str]:
        """``acestep-gguf`` with these arguments, in a process that has the card."""
        return [sys.executable, "-m", MODULE, "--use", str(self.library), self.endpoint, *arguments]

    def granted(self) -> list[int]:
        """Bytes of all buffers that were granted so far, in order."""
        return self._logged("granted")

    def refused(self) -> list[int]:
        """Bytes of all that were refused."""
        return self._logged("refused")

    def _logged(self, verb: str) -> list[int]:
        lines = (line.split() for line in self.log.read_text().splitlines())
        return [int(words[1]) for words in lines if words and words[0] == verb]

    @property
    def most_held(self) -> int:
        """Bytes of the buffers that there were at the fullest moment."""
        held = most = 0
        for line in self.log.read_text().splitlines():
            verb, _, n_bytes = line.partition(" ")
            if verb in ("granted", "freed"):
                held += int(n_bytes) if verb == "granted" else -int(n_bytes)
                most = max(most, held)
        return most


def card_library() -> Path:
    """The compiled server and client; the first call downloads the source and takes some ten seconds.

    Raises:
        CalledProcessError: there is no source package, or it does not compile.
        OSError: there is no compiler.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / "libplayed-card.so"
    built_from = max(path.stat().st_mtime for path in (SOURCE, *FOLDER.glob("libggml*")))
    with FileLock(BUILD / "lock"):
        if not library.exists() or library.stat().st_mtime < built_from:
            _compile(library)
    return library


def _compile(library: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(download_source(Path(folder))) as tar:
        ggml = f"llama_cpp_python-{version('llama-cpp-python')}/vendor/llama.cpp/ggml"
        members = [member for member in tar if _is_needed(member.name, ggml)]
        tar.extractall(folder, members, filter="data")
        include, source = Path(folder, ggml, "include"), Path(folder, ggml, "src")
        made = library.with_suffix(".tmp")
        command = ["c++", "-O2", "-std=c++17", "-fPIC", "-shared", "-DGGML_SHARED", "-DGGML_BACKEND_SHARED"]
        command += [f"-I{path}" for path in (include, source, source / "ggml-rpc")]
        command += [*(str(source / "ggml-rpc" / name) for name in RPC_FILES), str(SOURCE), "-o", str(made)]
        command += [f"-L{FOLDER}", "-lggml", "-lggml-cpu", "-lggml-base", "-pthread"]
        subprocess.run(command, check=True)
        made.replace(library)


def _is_needed(name: str, ggml: str) -> bool:
    is_ours = name.startswith((f"{ggml}/include/", f"{ggml}/src/"))
    return is_ours and (name.endswith(".h") or name.rpartition("/")[2] in RPC_FILES)


@contextmanager
def play_card(memory: int, *, n_threads: int = 1) -> Iterator[Card]:
    """A card with ``memory`` bytes, on a free port of this machine.

    Raises:
        CalledProcessError, OSError: as ``card_library``.
    """
    library = card_library()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "-m", MODULE, "--serve", str(library), endpoint, str(memory)]
        # Where two processes share few cores, neither may spin while it waits.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}
        with log.open("w") as opened:
            process = subprocess.Popen([*command, str(n_threads)], stdout=opened, cwd=ROOT, env=environment)
        try:
            _wait(process, endpoint)
            yield Card(library, endpoint, log)
        finally:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", endpoint: str) -> None:
    host, _, port = endpoint.partition(":")
    while process.poll() is None:
        with suppress(OSError), socket.create_connection((host, int(port))):
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise OSError(f"the card's process ended with {process.returncode}")


def serve(library: Path, endpoint: str, memory: int, n_threads: int) -> None:
    """Play a card, for ever."""
    backend()
    card = ctypes.CDLL(str(library))
    card.serve_card(endpoint.encode(), ctypes.c_size_t(memory), ctypes.c_size_t(n_threads))


def use_card(library: Path, endpoint: str) -> None:
    """Give llama.cpp in this process the card as a GPU, for good. The process ends with the card."""
    backend()  # the library is linked to ggml's by name: those that are loaded already
    ctypes.CDLL(str(library)).use_card(endpoint.encode())


def main(words: Sequence[str]) -> int:
    if words[:1] == ["--serve"]:
        library, endpoint, n_bytes, n_threads = words[1:]
        serve(Path(library), endpoint, int(n_bytes), int(n_threads))
        return 1  # it does not return
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
