"""Run random settings inside control groups a little larger and a little smaller than their plan.

    python -m scripts.checks.memory --work /tmp/memory-check --pairs 50

Given 5 % more memory than planned a command has to end well, given 5 % less it has to be refused in one line,
and it must never be killed. Needs the right to make a control group. Weights are holes in
sparse files: they take as much memory as any.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.cpus import cpu_flags
from acestep_gguf.llama.params import AMX
from scripts.bench.memory_group import MemoryGroup, memory_group
from scripts.synthetic.bundle import write_bundle, write_checkpoint
from scripts.synthetic.checkpoint import SHAPES, VISION_SHAPES, Shape

PROGRAM = [sys.executable, "-m", "acestep_gguf.cli"]
PICTURE = Path(__file__).parents[2] / "acestep_gguf/demo/pictures/shapes.png"
DRAWN = {
    "tiny": SHAPES["tiny"],
    "0.1b": Shape(512, 6, 8, 4, 1536, 151936, tied=True),
    "0.3b": Shape(1024, 12, 16, 8, 2816, 151936, tied=False),
    "0.5b": SHAPES["0.5b"],
}
QUANTS: tuple[Ftype, ...] = ("Q4_K_M", "Q5_K_M", "Q8_0")
REPACKING = ("--no-repack",) if AMX in cpu_flags() else ("--repack", "--no-repack")
MARGIN = 0.05


def drawn_options(rng: Random, draft: Path) -> list[str]:
    cache_type = rng.choice(("f16", "q8_0", "q4_0"))
    options = ["-q", rng.choice(QUANTS), "--ctx-size", str(rng.choice((1024, 4096, 16384, 32768)))]
    options += ["-ub", str(rng.choice((128, 256, 512))), "-ctk", cache_type, "-ctv", cache_type]
    options += [rng.choice(("--mmap", "--no-mmap")), rng.choice(REPACKING)]
    options += rng.choice(([], ["--no-cache"])) + rng.choice(([], ["--image-tokens", "20"]))
    return options + rng.choice(([], ["--draft", str(draft)]))


def run_in(group: MemoryGroup, limit: int, command: list[str]) -> "subprocess.CompletedProcess[str]":
    group.limit(limit)
    return subprocess.run(group.command(*command), capture_output=True, text=True, check=False)


def judge(group: MemoryGroup, bundle: Path, options: list[str], images: list[str]) -> list[str]:
    """What went wrong with one pair of runs."""
    planned = subprocess.run(
        [*PROGRAM, "plan", str(bundle), "--json", "--images", str(len(images) // 2), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = json.loads(planned.stdout)["parts"]
    # `plan` has room for opening a photo, this picture is small.
    need = sum(part["n_bytes"] for part in parts if not part["name"].startswith("opening a picture"))
    command = [*PROGRAM, "run", str(bundle), "-n", "2", *options, *images, "What is it?"]
    wrong = []
    inside = run_in(group, int((1 + MARGIN) * need), command)
    if inside.returncode != 0:
        wrong.append(f"with {MARGIN:.0%} more: exit {inside.returncode}, {inside.stderr.strip()}")
    refused = run_in(group, int((1 - MARGIN) * need), command)
    if refused.returncode != 1 or refused.stderr.count("\n") != 1:
        wrong.append(f"with {MARGIN:.0%} less: exit {refused.returncode}, {refused.stderr.strip()}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    for name, shape in DRAWN.items():
        if not (arguments.work / name / "bundle").exists():
            checkpoint = arguments.work / name / "checkpoint"
            checkpoint.mkdir(parents=True)
            write_checkpoint(checkpoint, shape, VISION_SHAPES["tiny"])
            write_bundle(checkpoint, checkpoint.parent / "bundle", QUANTS, name=name, sparse=True)

    os.environ["XDG_CACHE_HOME"] = str(arguments.work / "cache")
    rng = Random(arguments.seed)
    n_wrong = 0
    with memory_group() as group:
        for number in range(1, arguments.pairs + 1):
            name = rng.choice(list(DRAWN))
            options = drawn_options(rng, arguments.work / "tiny" / "bundle")
            shutil.rmtree(arguments.work / "cache", ignore_errors=True)
            images = ["--image", str(PICTURE)] * rng.randint(0, 1)
            wrong = judge(group, arguments.work / name / "bundle", options, images)
            n_wrong += bool(wrong)
            print(f"{number}: {name} {' '.join(options)}, {len(images) // 2} pictures:", wrong or "right")
    print(f"{arguments.pairs - n_wrong} of {arguments.pairs} pairs behaved")
    sys.exit(bool(n_wrong))


if __name__ == "__main__":
    main()
