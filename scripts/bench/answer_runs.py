"""The programs whose answers are compared, each measured as it runs, and the figures in what they print."""

import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import cpu_flags, usable_cpus
from acestep_gguf.llama.params import AMX
from scripts.bench import openvino_peer
from scripts.bench.artefacts import OUR_PROGRAM, Artefacts
from scripts.bench.llama_cpp_tools import build_tools
from scripts.bench.process_cost import Cost, measured

QUESTION = "Describe this image in detail"
LONG_TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so again. " * 28
N_DECODE = 64
N_CTX = 8192
THREADS = str(usable_cpus())
SAMPLE_S = 0.1
# llama.cpp's AMX kernels, which it repacks weights for by default, crash where GCC up to 12 built them.
REPACKS = AMX not in cpu_flags()
ENCODED_MS = re.compile(r"mtmd batch encoding done in (\d+) ms")


class Bench:
    """Runs programs, remembers what each run cost; parts read the medians."""

    def __init__(self, artefacts: Artefacts, rounds: int, per_skill: int) -> None:
        self.artefacts = artefacts
        self.rounds = rounds
        self.per_skill = per_skill
        self.costs: dict[str, list[Cost]] = {}
        self._home = artefacts.folder / "home"  # our caches start empty
        shutil.rmtree(self._home, ignore_errors=True)
        self._env = {**os.environ, "XDG_CACHE_HOME": str(self._home), "PYTHONWARNINGS": "ignore"}

    @cached_property
    def tools(self) -> dict[str, Path]:
        return build_tools(["llama-mtmd-cli", "llama-bench"])

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle.read(self.artefacts.bundle())

    @cached_property
    def decoder(self) -> Path:
        return self.artefacts.bundle() / self.bundle.decoder("Q4_K_M").file

    def in_turn(self, runs: dict[str, Callable[[int], Cost]]) -> None:
        """Run each once a round, if a part before has not done so."""
        missing = {name: run for name, run in runs.items() if name not in self.costs}
        for number in range(self.rounds):
            for name, run in missing.items():
                print(f"round {number + 1} of {self.rounds}: {name}", file=sys.stderr)
                self.costs.setdefault(name, []).append(run(number))

    def median(self, name: str, figure: Callable[[Cost], float]) -> float:
        return statistics.median(figure(cost) for cost in self.costs[name])

    def ours(self, *arguments: str) -> Cost:
        return measured([str(OUR_PROGRAM), *arguments], self._env, sample_s=SAMPLE_S)

    def ask(self, picture: int, question: str = QUESTION, *options: str) -> Cost:
        image = ["--image", str(self.artefacts.picture(picture))]
        return self.ours("run", str(self.artefacts.bundle()), *image, "-n", "8", *options, question)

    def read_and_write(self, *options: str) -> Cost:
        """Our own speeds on a long text, as JSON."""
        bundle = str(self.artefacts.bundle())
        return self.ours("run", bundle, "--json", "--no-cache", "-n", str(N_DECODE), *options, LONG_TEXT)

    def reader(self, *options: str) -> Callable[[int], Cost]:
        return lambda _: self.read_and_write(*options)

    def mtmd(self, picture: int, mmproj: str, *options: str) -> Cost:
        file = self.artefacts.bundle() / self.bundle.mmproj[mmproj].file  # type: ignore[index]
        image = ["--image", str(self.artefacts.picture(picture)), "-p", QUESTION, "-n", "8"]
        models = ["-m", str(self.decoder), "--mmproj", str(file), "--chat-template", "chatml"]
        settings = ["-t", THREADS, "-c", str(N_CTX), "--temp", "0", *([] if REPACKS else ["--no-repack"])]
        command = [str(self.tools["llama-mtmd-cli"]), *models, *image, *settings, *options]
        return measured(command, sample_s=SAMPLE_S)

    def first_tokens(self, prefill: str, pictures: Sequence[Path]) -> Cost:
        """Of ours about one picture after another, in one process."""
        command = [sys.executable, "-m", "scripts.bench.our_first_tokens", "--prefill", prefill]
        folder = str(self.artefacts.bundle())
        return measured([*command, folder, QUESTION, *map(str, pictures)], self._env, sample_s=SAMPLE_S)

    def openvino(self, pictures: Sequence[Path]) -> Cost:
        """The same of OpenVINO GenAI."""
        command = [*openvino_peer.first_tokens(self.artefacts.openvino_model()), QUESTION]
        return measured([*command, *map(str, pictures)], sample_s=SAMPLE_S)

    def llama_bench(self, *options: str) -> Cost:
        settings = ["-m", str(self.decoder), "-t", THREADS, "-r", "1", "-o", "json"]
        return measured([str(self.tools["llama-bench"]), *settings, *options], sample_s=SAMPLE_S)


def first_byte(cost: Cost) -> float:
    return cost.byte_s[0]


def first_token(cost: Cost) -> float:
    """Of llama-mtmd-cli; its first byte is a line feed."""
    return cost.byte_s[1]


def encoded_s(cost: Cost) -> float:
    """Seconds in which llama-mtmd-cli encoded the picture."""
    found = ENCODED_MS.search(cost.stderr.decode(errors="replace") + cost.stdout.decode(errors="replace"))
    if found is None:
        sys.exit("llama-mtmd-cli did not say how long it encoded.")
    return int(found[1]) / 1000


def tokens_per_s(cost: Cost) -> float:
    """What llama-bench measured."""
    return float(json.loads(cost.stdout)[-1]["avg_ts"])


def answer(cost: Cost) -> dict[str, Any]:
    """What ``run --json`` printed."""
    return dict(json.loads(cost.stdout))


def prefill_speed(cost: Cost) -> float:
    timings = answer(cost)["timings"]
    return float(timings["prefill_tokens"] / timings["prefill_s"])


def decode_speed(cost: Cost) -> float:
    """The first token comes from reading the prompt, so one call of the decoder less than tokens."""
    return float((answer(cost)["usage"]["completion_tokens"] - 1) / answer(cost)["timings"]["decode_s"])
