"""Compare answering about many pictures with llama.cpp's and OpenVINO's ways, on the same random weights.

    pip install -e '.[bench]' && python -m scripts.bench.batch

Sides: a loop over llama-mtmd-cli; llama-server with 4 slots and as many clients; OpenVINO GenAI's
ContinuousBatchingPipeline; `acestep-gguf batch`, with all image tokens and with 256. The tools are built
from llama-cpp-python's source package, OpenVINO gets an environment of its own. All run a decoder of the
1.5B shape (Q4_K_M; OpenVINO's own int4) behind a ViT-H/14 tower at 448 px, and write answers of 64 tokens.

The pictures are divided into blocks, and each side answers each block in turn; figures are medians over the
blocks, in seconds a picture. Server and pipeline are started before the clock is; a loop starts a program for
each picture, and our own program once a block. Anonymous memory of our program is then watched over all
pictures in one run. Figures are kept as they come: a run that was stopped goes on, and --steps 1 measures
just the next one, when the machine is quiet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import platformdirs

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from scripts.bench.artefacts import OUR_PROGRAM, SCALES, Artefacts
from scripts.bench.llama_cpp_tools import build_tools
from scripts.bench.llama_server import LlamaServer
from scripts.bench.openvino_peer import OpenVino
from scripts.bench.process_cost import fields, measured
from scripts.bench.table import Note, Row, report

QUESTION: Final = "Describe this image in detail"
N_TOKENS: Final = 64
N_CTX: Final = 2048  # of a sequence
N_SLOTS: Final = 4
FEW_TOKENS: Final = "256"
# Faster on 2 cores than llama.cpp's defaults, and repacked weights crash where GCC 12 built it for AMX.
LLAMA_CPP: Final = ("--no-repack", "--no-warmup", "-fit", "off", "--chat-template", "chatml")
SLOTS: Final = ("-np", str(N_SLOTS), "-c", str(N_SLOTS * N_CTX), "--no-kv-unified")
LLAMA_SERVER: Final = (*SLOTS, "-t", str(usable_cpus()), *LLAMA_CPP)
FIRST_ROWS, LATER_ROWS = 10, 60

MTMD, SERVER, OPENVINO = "llama-mtmd-cli, a loop", "llama-server, 4 slots", "OpenVINO GenAI"
OURS, OURS_FEW = "batch", f"batch, {FEW_TOKENS} image tokens"
MEMORY: Final = f"anonymous memory, {LATER_ROWS} pictures to {FIRST_ROWS}"
# In the order of their turns; ours with their options.
SIDES: Final[dict[str, tuple[str, ...]]] = {
    MTMD: (),
    SERVER: (),
    OPENVINO: (),
    OURS: (),
    OURS_FEW: ("--image-tokens", FEW_TOKENS),
}
BARS: Final = (
    (OURS, MTMD, 0.55),
    (OURS, SERVER, 0.62),
    (OURS_FEW, MTMD, 0.28),
    (OURS_FEW, SERVER, 0.32),
)


class Bench:
    """The sides, over the same models."""

    def __init__(self, artefacts: Artefacts, mmproj: str, parallel: str) -> None:
        self.artefacts = artefacts
        self._folder = artefacts.bundle()
        bundle = Bundle.read(self._folder)
        self._decoder = self._folder / bundle.decoder("Q4_K_M").file
        self._mmproj = self._folder / bundle.mmproj[mmproj].file  # type: ignore[index]
        self._tools = build_tools(["llama-mtmd-cli", "llama-server"])
        self._parallel = parallel
        self._threads = str(usable_cpus())

    def mtmd(self, pictures: Sequence[Path]) -> float:
        models = ["-m", str(self._decoder), "--mmproj", str(self._mmproj)]
        settings = ["-t", self._threads, "-c", str(N_CTX), "--temp", "0", "-n", str(N_TOKENS), "--ignore-eos"]
        command = [str(self._tools["llama-mtmd-cli"]), *models, *settings, *LLAMA_CPP, "-p", QUESTION]
        return sum(measured([*command, "--image", str(path)]).seconds for path in pictures)

    def server(self) -> LlamaServer:
        return LlamaServer(self._tools["llama-server"], self._decoder, self._mmproj, LLAMA_SERVER)

    def ours(self, pictures: Sequence[Path], *options: str) -> float:
        began = time.perf_counter()
        with self.start(pictures, *options) as process:
            process.wait()
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in self._output.read_text().splitlines()]
        numbers = {row["completion_tokens"] for row in rows}
        if len(rows) != len(pictures) or numbers != {N_TOKENS}:
            sys.exit(f"{len(rows)} answers of {numbers} tokens were written.")
        return seconds

    def start(self, pictures: Sequence[Path], *options: str) -> "subprocess.Popen[bytes]":
        """Our program, which begins anew."""
        settings = ["-n", str(N_TOKENS), "-c", str(N_CTX), "--parallel", self._parallel, "--restart"]
        question = ["-p", QUESTION, "-o", str(self._output)]
        command = [str(OUR_PROGRAM), "batch", str(self._folder), *map(str, pictures), *question, *settings]
        return subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)

    def memory(self, pictures: Sequence[Path]) -> float:
        """Most anonymous memory of our program up to row ``LATER_ROWS``, to that up to ``FIRST_ROWS``."""
        early = late = 0
        journal = self._output.with_name(self._output.name + ".journal")
        with self.start(pictures, "--image-tokens", FEW_TOKENS) as process:
            while process.poll() is None:
                n_rows = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
                status = Path(f"/proc/{process.pid}/status")
                anonymous = int(fields(status).get("RssAnon", "0 kB").split()[0])
                if n_rows <= FIRST_ROWS:
                    early = max(early, anonymous)
                if n_rows <= LATER_ROWS:
                    late = max(late, anonymous)
                time.sleep(0.05)
        return late / early

    @property
    def _output(self) -> Path:
        return self.artefacts.folder / "answers.jsonl"


def served(ask_about: Callable[[Path], dict[str, Any]], pictures: Sequence[Path], n_clients: int) -> float:
    """Seconds until all clients of a server have the answers about their pictures."""
    began = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as clients:
        answers = list(clients.map(ask_about, pictures))
    seconds = time.perf_counter() - began
    numbers = {answer["usage"]["completion_tokens"] for answer in answers}
    if numbers != {N_TOKENS}:
        sys.exit(f"answers of {numbers} tokens were written.")
    return seconds


@dataclass(frozen=True)
class Figures:
    """What was measured so far, in a file: seconds a picture of each side, block after block."""

    path: Path

    def read(self) -> dict[str, list[float]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, name: str, figure: float) -> None:
        figures = self.read()
        figures.setdefault(name, []).append(figure)
        self.path.write_text(json.dumps(figures, indent=2))


def measure(bench: Bench, name: str, block: Sequence[Path]) -> float:
    """Seconds a picture of one side."""
    if name == MTMD:
        seconds = bench.mtmd(block)
    elif name == SERVER:
        with bench.server() as server:
            seconds = served(lambda path: server.ask(path, QUESTION, N_TOKENS), block, N_SLOTS)
    elif name == OPENVINO:
        with OpenVino(bench.artefacts.openvino_model()) as pipeline:
            seconds = float(pipeline.ask(block, QUESTION, N_TOKENS)["seconds"])
    else:
        seconds = bench.ours(block, *SIDES[name])
    return seconds / len(block)


def rows(figures: Mapping[str, list[float]]) -> Iterator[Row | Note]:
    medians = {name: statistics.median(taken) for name, taken in figures.items()}
    for ours, peer, bar in BARS:
        if ours in medians and peer in medians:
            mine, theirs = medians[ours], medians[peer]
            yield Row(f"{ours}, to {peer}", f"{mine:.2f} s", f"{theirs:.2f} s", mine / theirs, bar)
    if MEMORY in figures:
        yield Row(MEMORY, "", "", medians[MEMORY], 1.02)
    for name, taken in figures.items():
        yield Note(name, ", ".join(f"{figure:.3g}" for figure in taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--mmproj", choices=("F16", "Q8_0"), default="F16", help="llama.cpp's tower")
    parser.add_argument("--parallel", default="-1", help="answers that `batch` writes together")
    parser.add_argument("--steps", type=int, default=-1, help="figures to measure now; -1: all")
    parser.add_argument("--restart", action="store_true", help="forget figures of before")
    parser.add_argument("--folder", type=Path, help="where models, pictures and figures are kept")
    parser.add_argument("--shape", choices=SCALES, default="1.5b", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    folder = arguments.folder or platformdirs.user_cache_path("acestep-gguf-bench") / "answers"
    artefacts = Artefacts(folder / arguments.shape, SCALES[arguments.shape])
    bench = Bench(artefacts, arguments.mmproj, arguments.parallel)
    pictures = [artefacts.picture(number) for number in range(arguments.pictures)]
    size = len(pictures) // arguments.blocks
    blocks = [pictures[start : start + size] for start in range(0, size * arguments.blocks, size)]
    conditions = f"{len(pictures)} pictures in {len(blocks)} blocks, mmproj {arguments.mmproj}"
    figures = Figures(artefacts.folder / f"batch, {conditions}.json")
    if arguments.restart:
        figures.path.unlink(missing_ok=True)

    n_known = sum(map(len, figures.read().values()))
    steps: list[tuple[str, Sequence[Path]]] = [(name, block) for block in blocks for name in SIDES]
    steps.append((MEMORY, pictures))
    for name, block in islice(steps, n_known, None if arguments.steps == -1 else n_known + arguments.steps):
        figure = bench.memory(block) if name == MEMORY else measure(bench, name, block)
        figures.add(name, figure)
        print(f"{name}: {figure:.3g}", file=sys.stderr, flush=True)
    n_known = sum(map(len, figures.read().values()))
    holds = report(rows(figures.read()), {}, f"{conditions}, {n_known} of {len(steps)} figures")
    sys.exit(0 if holds and n_known == len(steps) else 1)


if __name__ == "__main__":
    main()
