"""Prove the plans for an NVIDIA GPU, and compare them with llama.cpp's own --fit, on a machine that has one.

    python -m scripts.checks.gpu --work /tmp/gpu-check
    python -m scripts.checks.gpu --work /tmp/gpu-check --dry-run

It builds llama-cpp-python and llama.cpp's tools with CUDA, writes a bundle of the 32B shape, and for each
size of card holds so much of the GPU's memory that only that size is left. Then llama-bench runs with what
our plan says, and with what llama-fit-params says for the same context. The disk needs 25 GB. --dry-run shows
the commands and the plans, on a machine without a GPU.
"""

import argparse
import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.bench.llama_cpp_tools import CMAKE_FLAGS, llama_cpp_source

GIB = 2**30
ROUNDS = 5
DEPTH = 1024  # tokens in the context while decoding is measured: a picture
N_PROMPT = 512
N_DECODE = 32
DECODE_BAR = 0.98  # of --fit's speed
BUFFER_BAR = 0.10  # of what was predicted
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What llama-bench measured: tokens a second, and the bytes that the GPU had free at the worst moment."""

    prefill: float
    decode: float
    least_free: int


def run(command: Sequence[str], *, dry_run: bool, env: dict[str, str] | None = None) -> str:
    """Output of a command; with ``dry_run`` it is only shown."""
    shown = " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()), shlex.join(command)]
    )
    print(f"$ {shown}", file=sys.stderr)
    if dry_run:
        return ""
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def set_up(work: Path, *, dry_run: bool) -> tuple[Path, Path]:
    """A virtual environment and llama.cpp's tools, both with CUDA: the python and the folder of the tools."""
    python, build = work / "venv/bin/python", work / "build"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(work / "venv")], dry_run=dry_run)
        package = f"llama-cpp-python=={version('llama-cpp-python')}"
        pip = [str(python), "-m", "pip", "install", "--no-binary", "llama-cpp-python"]
        run([*pip, package], dry_run=dry_run, env={"CMAKE_ARGS": "-DGGML_CUDA=on"})
        run([str(python), "-m", "pip", "install", "--editable", f"{ROOT}[convert]"], dry_run=dry_run)
    if not (build / "bin/llama-bench").exists():
        source = Path("LLAMA_CPP") if dry_run else llama_cpp_source()
        cuda = ["-DGGML_CUDA=ON"]
        run(["cmake", "-S", str(source), "-B", str(build), *CMAKE_FLAGS, *cuda], dry_run=dry_run)
        targets = ["--target", "llama-bench", "llama-fit-params"]
        run(["cmake", "--build", str(build), "-j", str(os.cpu_count() or 1), *targets], dry_run=dry_run)
    return python, build / "bin"


def make_bundle(work: Path, python: Path, *, dry_run: bool) -> Path:
    bundle = work / "bundle-32b"
    if not bundle.exists():
        script = [str(python), "-m", "scripts.synthetic.bundle", "--shape", "32b"]
        run([*script, str(bundle)], dry_run=dry_run)
    return bundle


def plan(python: Path, bundle: Path, n_ctx: int, told: Sequence[str] = ()) -> dict[str, Any]:
    """Our plan as JSON; for the GPU that is there, or for the one that ``told`` options describe."""
    command = [str(python), "-m", "acestep_gguf.cli", "plan", str(bundle), "--json", "--ctx-size", str(n_ctx)]
    facts: dict[str, Any] = json.loads(run([*command, "--images", "1", *told], dry_run=False))
    return facts


def bench_options(settings: dict[str, Any], n_layer: int) -> list[str]:
    """Our plan in llama-bench's words."""
    first = n_layer + 1 - settings["n_gpu_layers"]
    numbers = "|".join(str(first + i) for i in range(settings["n_attention_only"]))
    in_ram = ["-ot", rf"blk\.({numbers})\.ffn_(gate|up|down)\.weight=CPU"] if numbers else []
    return [
        *("-ngl", str(settings["n_gpu_layers"]), "-ub", str(settings["n_ubatch"])),
        *("-b", str(settings["n_batch"]), "-nkvo", str(int(not settings["offload_kqv"]))),
        *("-ctk", settings["type_k"], "-ctv", settings["type_v"], "-fa", "1"),
        *in_ram,
    ]


def bench(tools: Path, model: Path, options: Sequence[str]) -> Result:
    """llama-bench's medians, while the GPU's free memory is watched."""
    command = [str(tools / "llama-bench"), "-m", str(model), "-o", "json", "-r", str(ROUNDS)]
    command += ["-p", str(N_PROMPT), "-n", str(N_DECODE), "-d", str(DEPTH), *options]
    watch = FreeMemory()
    with watch:
        tests = json.loads(run(command, dry_run=False))
    speeds = {test["n_prompt"] > 0: statistics.median(test["samples_ts"]) for test in tests}
    return Result(prefill=speeds[True], decode=speeds[False], least_free=watch.least)


class FreeMemory:
    """The least free memory of the first GPU, as nvidia-smi tells it every 50 ms."""

    def __init__(self) -> None:
        self.least = gpu_memory("free")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.least = min(self.least, gpu_memory("free"))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def gpu_memory(kind: str) -> int:
    """Bytes of the first GPU's memory: "free" or "total"."""
    query = ["nvidia-smi", "-i", "0", f"--query-gpu=memory.{kind}", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout) * 2**20


@contextmanager
def occupied(left: int) -> Iterator[None]:
    """Hold so much of the first GPU's memory that ``left`` bytes are free; with plain cudaMalloc."""
    cuda = ctypes.CDLL("libcudart.so")
    pointer = ctypes.c_void_p()
    cuda.cudaSetDevice(0)
    cuda.cudaFree(ctypes.c_void_p())  # makes the context, which takes memory itself
    excess = gpu_memory("free") - left
    if excess < 0:
        sys.exit(
            f"the GPU has less than {left / GIB:.1f} GiB free: end what uses it, or ask for smaller --cards."
        )
    if cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(excess)):
        sys.exit("cudaMalloc failed.")
    try:
        time.sleep(1)
        yield
    finally:
        cuda.cudaFree(pointer)


def check(card: int, work: Path, n_ctx: int) -> str:
    """One row for our plan and one for --fit, with ``card`` GiB left."""
    python, tools = set_up(work, dry_run=False)
    bundle = make_bundle(work, python, dry_run=False)
    (model,) = bundle.glob("*.gguf")
    with occupied(card * GIB):
        free = gpu_memory("free")
        facts = plan(python, bundle, n_ctx)
        predicted = facts["gpus"][0]["needed"] - next(
            part["n_bytes"] for part in facts["parts"] if part["name"] == "reserve"
        )
        ours = bench(tools, model, bench_options(facts["settings"], n_layer=64))
        fit = [str(tools / "llama-fit-params"), "-m", str(model), "-c", str(n_ctx)]
        fit_options = of_fit(run(fit, dry_run=False))
        theirs = bench(tools, model, fit_options)
    used = free - ours.least_free
    passed = ours.decode >= DECODE_BAR * theirs.decode and used <= (1 + BUFFER_BAR) * predicted
    settings = facts["settings"]
    return "\n".join(
        [
            f"| {card} GiB | plan | {settings['n_gpu_layers']} + {settings['n_attention_only']} half | "
            f"{predicted:,} | {used:,} | {ours.least_free:,} | {ours.prefill:.1f} | {ours.decode:.2f} | "
            f"{'yes' if passed else 'NO'} |",
            f"| {card} GiB | --fit | {' '.join(fit_options)} | | {free - theirs.least_free:,} | "
            f"{theirs.least_free:,} | {theirs.prefill:.1f} | {theirs.decode:.2f} | |",
        ]
    )


def of_fit(printed: str) -> list[str]:
    """llama-bench's options in what llama-fit-params prints, such as ``-c 8192 -ngl 33``."""
    words = shlex.split(printed)
    pairs = [(option, word) for option, word in pairwise(words) if option in ("-ngl", "-ot")]
    return [part for pair in pairs for part in pair]


def dry_run(cards: Sequence[int], work: Path, n_ctx: int) -> None:
    """Show what would be done; the plans are made in earnest, from a bundle of headers and holes."""
    python, tools = set_up(work, dry_run=True)
    make_bundle(work, python, dry_run=True)
    here = Path(sys.executable)
    hollow = work / "hollow-32b"
    if not hollow.exists():
        hollow.parent.mkdir(parents=True, exist_ok=True)
        script = [str(here), "-m", "scripts.synthetic.bundle", "--shape", "32b", "--sparse"]
        run([*script, "--vision", "tiny", str(hollow)], dry_run=False)
    (model,) = hollow.glob("*.gguf")
    for card in cards:
        facts = plan(here, hollow, n_ctx, ["--vram", f"{card}GiB", "--ram", "64GB"])
        options = bench_options(facts["settings"], n_layer=64)
        print(f"{card} GiB: {facts['gpus'][0]['needed']:,} bytes, {shlex.join(options)}")
        run([str(tools / "llama-bench"), "-m", str(model), *options], dry_run=True)
        run([str(tools / "llama-fit-params"), "-m", str(model), "-c", str(n_ctx)], dry_run=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for builds and the bundle")
    parser.add_argument("--cards", type=int, nargs="+", default=[8, 12, 24], help="GiB to leave free")
    parser.add_argument("--ctx-size", type=int, default=8192)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()

    if arguments.dry_run:
        dry_run(arguments.cards, arguments.work, arguments.ctx_size)
        return
    name = ["nvidia-smi", "-i", "0", "--query-gpu=name", "--format=csv,noheader"]
    print(f"{run(name, dry_run=False).strip()}, context {arguments.ctx_size}, medians of {ROUNDS}\n")
    print(
        "| card | | layers | GPU bytes predicted | taken | least free | prefill tokens/s | decode | passed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for card in arguments.cards:
        print(check(card, arguments.work, arguments.ctx_size), flush=True)


if __name__ == "__main__":
    main()
