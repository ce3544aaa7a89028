"""Compare answering about many pictures with llama.cpp's and OpenVINO's ways, on the same random weights.

    pip install -e '.[bench]' && python -m scripts.bench.batch

Sides: a loop over llama-mtmd-cli; llama-server with 4 slots and as many clients; OpenVINO GenAI's
ContinuousBatchingPipeline; `acestep-gguf batch`, with all image tokens and with 256. The tools are built
from llama-cpp-python's source package, OpenVINO gets an environment of its own. All run a decoder of the
1.5B shape (Q4_K_M; OpenVINO's own int4) behind a ViT-H/14 tower at 448 px, and write answers of 64 tokens.

The pictures are divided into blocks, and each side answers each block in turn; figures are medians over the
blocks, in seconds a picture. Server and pipeline are started before the clock is; a loop starts a program for
each picture, and our own program once a block. Anonymous memory of our program is then watched over all
pictures in one run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import platformdirs

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from scripts.bench.artefacts import OUR_PROGRAM, SCALES, Artefacts
from scripts.bench.llama_cpp_tools import build_tools
from scripts.bench.llama_server import LlamaServer
from scripts.bench.openvino_genai import OpenVino
from scripts.bench.process_cost import fields, measured
from scripts.bench.table import Note, Row, report

QUESTION: Final = "Describe this image in detail"
N_TOKENS: Final = 64
N_CTX: Final = 2048  # of a sequence
N_SLOTS: Final = 4
FEW_TOKENS: Final = "256"
# Faster on 2 cores than llama.cpp's defaults, and repacked weights crash where GCC 12 built it for AMX.
LLAMA_CPP: Final = ("--no-repack", "--no-warmup", "-fit", "off", "--chat-template", "chatml")
FIRST_ROWS, LATER_ROWS = 10, 60

# What a side is called, and what answers a block of pictures: seconds.
Sides = dict[str, Callable[[Sequence[Path]], float]]

MTMD, SERVER, OPENVINO = "llama-mtmd-cli, a loop", "llama-server, 4 slots", "OpenVINO GenAI"
OURS, OURS_FEW = "batch", f"batch, {FEW_TOKENS} image tokens"
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
        slots = ["-np", str(N_SLOTS), "-c", str(N_SLOTS * N_CTX), "-t", self._threads, "--no-kv-unified"]
        program = self._tools["llama-server"]
        return LlamaServer(program, self._decoder, self._mmproj, [*slots, *LLAMA_CPP])

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


def server_side(server: LlamaServer) -> Callable[[Sequence[Path]], float]:
    def answer(pictures: Sequence[Path]) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(N_SLOTS) as clients:
            answers = list(clients.map(lambda path: server.ask(path, QUESTION, N_TOKENS), pictures))
        seconds = time.perf_counter() - began
        numbers = {answer["usage"]["completion_tokens"] for answer in answers}
        if numbers != {N_TOKENS}:
            sys.exit(f"llama-server wrote answers of {numbers} tokens.")
        return seconds

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--mmproj", choices=("F16", "Q8_0"), default="F16", help="llama.cpp's tower")
    parser.add_argument("--parallel", default="-1", help="answers that `batch` writes together")
    parser.add_argument("--without", action="append", default=[], choices=("mtmd", "server", "openvino"))
    parser.add_argument("--no-memory", action="store_true", help="do not watch memory afterwards")
    parser.add_argument("--folder", type=Path, help="where models and pictures are kept")
    parser.add_argument("--shape", choices=SCALES, default="1.5b", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    folder = arguments.folder or platformdirs.user_cache_path("acestep-gguf-bench") / "answers"
    artefacts = Artefacts(folder / arguments.shape, SCALES[arguments.shape])
    bench = Bench(artefacts, arguments.mmproj, arguments.parallel)
    pictures = [artefacts.picture(number) for number in range(arguments.pictures)]
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        sides: Sides = {}
        if "mtmd" not in arguments.without:
            sides[MTMD] = bench.mtmd
        if "server" not in arguments.without:
            sides[SERVER] = server_side(stack.enter_context(bench.server()))
        if "openvino" not in arguments.without:
            pipeline = stack.enter_context(OpenVino(artefacts.openvino_model()))
            sides[OPENVINO] = lambda block: float(pipeline.ask(block, QUESTION, N_TOKENS)["seconds"])
        sides[OURS] = bench.ours
        sides[OURS_FEW] = lambda block: bench.ours(block, "--image-tokens", FEW_TOKENS)
        size = len(pictures) // arguments.blocks
        for number in range(arguments.blocks):
            block = pictures[number * size : (number + 1) * size]
            for name, answer in sides.items():
                taken = answer(block) / len(block)
                seconds.setdefault(name, []).append(taken)
                print(f"block {number + 1}: {name}, {taken:.2f} s a picture", file=sys.stderr, flush=True)

    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows: list[Row | Note] = [
        Row(
            f"{ours}, to {peer}",
            f"{medians[ours]:.2f} s",
            f"{medians[peer]:.2f} s",
            medians[ours] / medians[peer],
            bar,
        )
        for ours, peer, bar in BARS
        if peer in medians
    ]
    if OPENVINO in medians:
        theirs = medians[OPENVINO]
        rows.append(Note(OPENVINO, f"{theirs:.2f} s a picture; ours to that {medians[OURS] / theirs:.2f}"))
    if not arguments.no_memory:
        growth = bench.memory(pictures)
        rows.append(Row(f"memory, {LATER_ROWS} pictures to {FIRST_ROWS}", "", "", growth, 1.02))
    conditions = f"{len(pictures)} pictures in {arguments.blocks} blocks, mmproj {arguments.mmproj}"
    sys.exit(0 if report(rows, {}, conditions) else 1)


if __name__ == "__main__":
    main()
