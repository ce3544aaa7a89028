"""Compare conversion with llama.cpp's way: its converter to F16, then llama-quantize once per quantization.

    pip install -e '.[bench]' && python -m scripts.bench.conversion --shape 1.5b --rounds 3

Both get the same random Qwen2 decoder as a checkpoint of its own, because llama.cpp's converter cannot read
LLaVA's layout, with the real Qwen2 vocabulary. The tools are built from llama-cpp-python's source package.
Before a run the inputs are dropped from the page cache, so that bytes read are bytes that left the disk.
Figures are medians over the rounds; memory is sampled every 20 ms over the process and its children.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from acestep_gguf.cpus import cpu_name
from scripts.bench.llama_cpp_tools import build_tools, llama_cpp_source
from scripts.bench.process_cost import GIB, Cost, measured
from scripts.synthetic.checkpoint import SHAPES

FTYPES = ("Q4_K_M", "Q5_K_M", "Q8_0")


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def ours(checkpoint: Path, out: Path) -> Cost:
    program = Path(sys.executable).parent / "acestep-gguf"
    wanted = [word for ftype in FTYPES for word in ("-q", ftype)]
    return measured([str(program), "convert", str(checkpoint), str(out), *wanted])


def theirs(checkpoint: Path, out: Path, quantize: Path) -> Cost:
    source = llama_cpp_source()
    env = {**os.environ, "PYTHONPATH": str(source / "gguf-py")}
    out.mkdir()
    f16 = out / "F16.gguf"
    converter = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(checkpoint)]
    cost = measured([*converter, "--outtype", "f16", "--outfile", str(f16)], env)
    for ftype in FTYPES:
        threads = str(os.cpu_count())
        cost.add(measured([str(quantize), str(f16), str(out / f"{ftype}.gguf"), ftype, threads]))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the outputs go")
    arguments = parser.parse_args()

    quantize = build_tools(["llama-quantize"])["llama-quantize"]
    vocabulary = llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make = [
            sys.executable,
            "-m",
            "scripts.synthetic.checkpoint",
            "--shape",
            arguments.shape,
            "--decoder-only",
        ]
        checkpoint = folder / "checkpoint"
        subprocess.run([*make, "--vocabulary", str(vocabulary), str(checkpoint)], check=True)
        ways: dict[str, Callable[[Path], Cost]] = {
            "acestep-gguf convert": lambda out: ours(checkpoint, out),
            "llama.cpp: convert to F16, quantize 3 times": lambda out: theirs(checkpoint, out, quantize),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                forget(checkpoint)
                out = folder / "out"
                costs[name].append(way(out))
                outputs = sum(path.stat().st_size for path in out.rglob("*") if path.name != "F16.gguf")
                shutil.rmtree(out)
    report(costs, outputs, arguments.shape)


def report(costs: dict[str, list[Cost]], outputs: int, shape: str) -> None:
    print(
        f"\n{shape} shape to {', '.join(FTYPES)}: {outputs:,} bytes; {os.cpu_count()} cores, {cpu_name()}\n"
    )
    print("| | wall s | peak anonymous GiB | peak resident GiB | read GiB | written GiB |")
    print("|---|---|---|---|---|---|")
    seconds = []
    for name, rounds in costs.items():
        wall, *rest = (
            statistics.median(getattr(cost, field) for cost in rounds)
            for field in ("seconds", "anonymous", "resident", "read", "written")
        )
        seconds.append(wall)
        print(f"| {name} | {wall:.1f} | " + " | ".join(f"{value / GIB:.2f}" for value in rest) + " |")
    print(f"\nwall, ours to llama.cpp's: {seconds[0] / seconds[1]:.2f}")
    written = statistics.median(cost.written for cost in next(iter(costs.values())))
    print(f"bytes written, ours to the outputs: {written / outputs:.4f}")


if __name__ == "__main__":
    main()
