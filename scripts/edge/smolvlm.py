"""How fast a board's model answers, beside llama-mtmd-cli: SmolVLM-256M's shape on one core, in 1 GB.

    python -m scripts.edge.smolvlm WORK --rounds 3

WORK gets a checkpoint of that shape with random weights, and a bundle of it with its mmproj file; what is
there is kept. Both programs run the same decoder file in turn, offline, in a control group; llama-mtmd-cli
with its tower in F16, its default, and in Q8_0. The time of an answer of one token is that of the whole
program. Linux, as root.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.cpus import cpu_name
from scripts.bench.answer_runs import REPACKS
from scripts.bench.artefacts import OUR_PROGRAM, SCALES, Artefacts
from scripts.bench.llama_cpp_tools import build_tools
from scripts.bench.process_cost import measured
from scripts.edge.runtime_install import board
from tests.support import tiny_smollm
from tests.support.tiny_smolvlm import TinySmolVLM

GB = 10**9
QUESTION = "Describe this image in detail"
N_TOKENS = 128
N_CTX = 2048
N_ROWS = 49280  # of SmolVLM-256M's embedding
SHAPE = TinySmolVLM(
    decoder="smollm",
    hidden_size=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    intermediate_size=1536,
    n_padding_rows=N_ROWS - tiny_smollm.n_tokens(),
    max_position_embeddings=8192,
    vision_hidden_size=768,
    vision_intermediate_size=3072,
    vision_n_layers=12,
    vision_n_heads=12,
    image_size=512,
    patch_size=16,
    scale_factor=4,
    longest_edge=2048,
)


def make_bundle(work: Path, shape: TinySmolVLM = SHAPE) -> Path:
    """The bundle in ``work``; it has bundle.json last, so one that has it is whole."""
    bundle = work / "bundle"
    if not (bundle / "bundle.json").exists():
        shape.write(work / "checkpoint")
        convert_checkpoint(
            work / "checkpoint", bundle, ["Q4_K_M"], mmproj=["F16", "Q8_0"], prefill=True, name="SmolVLM"
        )
    return bundle


def programs(folder: Path, picture: Path, llama_mtmd_cli: Path) -> dict[str, list[str]]:
    """Command lines that answer about the picture with one thread; ``-n`` is still to come."""
    bundle = Bundle.read(folder)
    settings = ["-t", "1", "-c", str(N_CTX), "--image", str(picture)]
    ours = [str(OUR_PROGRAM), "run", str(folder), QUESTION, "--no-cache", *settings]
    theirs = [str(llama_mtmd_cli), "-m", str(folder / bundle.decoder("Q4_K_M").file), *settings]
    theirs += ["--temp", "0", "-p", QUESTION, *([] if REPACKS else ["--no-repack"])]
    return {
        "run": ours,
        "run --prefill off": [*ours, "--prefill", "off"],
        "run --max-tiles 1": [*ours, "--max-tiles", "1"],
        **{
            f"llama-mtmd-cli, mmproj {ftype}": [*theirs, "--mmproj", str(folder / mmproj.file)]
            for ftype, mmproj in bundle.mmproj.items()
        },
    }


@dataclass
class Runs:
    """What one program's runs cost, in rounds."""

    one_token: list[float] = field(default_factory=list)  # seconds
    all_tokens: list[float] = field(default_factory=list)  # seconds
    anonymous: list[int] = field(default_factory=list)  # peak bytes
    resident: list[int] = field(default_factory=list)  # peak bytes
    group: list[int] = field(default_factory=list)  # peak bytes, files read included

    def measure(self, command: Sequence[str], env: dict[str, str]) -> None:
        """Once for one token, once for all."""
        with board(GB) as (words, group):
            self.one_token.append(measured([*words, *command, "-n", "1"], env).seconds)
            cost = measured([*words, *command, "-n", str(N_TOKENS)], env)
            self.group.append(group.peak)
        self.all_tokens.append(cost.seconds)
        self.anonymous.append(cost.anonymous)
        self.resident.append(cost.resident)

    def cells(self) -> str:
        """Medians, as cells of a table."""
        first, last = median(self.one_token), median(self.all_tokens)
        memory = (median(peaks) for peaks in (self.anonymous, self.resident, self.group))
        sizes = " | ".join(f"{size / 1e6:.0f} MB" for size in memory)
        return f"{first:.1f} s | {(last - first) / (N_TOKENS - 1):.3f} s | {last:.1f} s | {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    folder = make_bundle(work)
    picture = Artefacts(work, SCALES["tiny"]).picture(0)
    commands = programs(folder, picture, build_tools(["llama-mtmd-cli"])["llama-mtmd-cli"])
    env = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    runs = {name: Runs() for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            runs[name].measure(command, env)

    print(f"\none core of {cpu_name()}, 1 GB; medians of {arguments.rounds} rounds in turn\n")
    print(f"| | answer of one token | each further one | of {N_TOKENS} | anonymous | resident | the group |")
    print("|---|---|---|---|---|---|---|")
    for name, measurements in runs.items():
        print(f"| {name} | {measurements.cells()} |")


if __name__ == "__main__":
    main()
