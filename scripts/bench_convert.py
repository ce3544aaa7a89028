"""Compare conversion with llama.cpp's way: its converter to F16, then llama-quantize once per quantization.

    pip install -e '.[bench]' && python scripts/bench_convert.py --shape 1.5b --rounds 3

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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_cpp_tools import build_tools, llama_cpp_source
from synthetic_checkpoint import SHAPES

FTYPES = ("Q4_K_M", "Q5_K_M", "Q8_0")
GIB = 2**30


@dataclass
class Cost:
    """What one or several processes, run one after the other, cost."""

    seconds: float = 0.0
    anonymous: int = 0  # peak bytes
    resident: int = 0  # peak bytes
    read: int = 0
    written: int = 0

    def add(self, other: "Cost") -> None:
        self.seconds += other.seconds
        self.anonymous = max(self.anonymous, other.anonymous)
        self.resident = max(self.resident, other.resident)
        self.read += other.read
        self.written += other.written


def measured(command: Sequence[str], env: dict[str, str] | None = None) -> Cost:
    """Run a command and sample /proc until it ends."""
    cost = Cost()
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env) as process:
        errors: list[bytes] = []
        reader = threading.Thread(
            target=lambda: errors.append(process.stderr.read() if process.stderr else b"")
        )
        reader.start()
        while process.poll() is None:
            sample(process.pid, cost)
            time.sleep(0.02)
        cost.seconds = time.perf_counter() - started
        reader.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{b''.join(errors).decode()[-2000:]}")
    return cost


def sample(pid: int, cost: Cost) -> None:
    anonymous = resident = read = written = 0
    for one in family(pid):
        try:
            status = fields(Path(f"/proc/{one}/status"))
            io = fields(Path(f"/proc/{one}/io"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        anonymous += 1024 * int(status.get("RssAnon", "0 kB").split()[0])
        resident += 1024 * int(status.get("VmRSS", "0 kB").split()[0])
        read += int(io["read_bytes"])
        written += int(io["wchar"])
    cost.anonymous = max(cost.anonymous, anonymous)
    cost.resident = max(cost.resident, resident)
    cost.read = max(cost.read, read)
    cost.written = max(cost.written, written)


def family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return
    for child in children:
        yield from family(int(child))


def fields(path: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)


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
        script = Path(__file__).with_name("synthetic_checkpoint.py")
        make = [sys.executable, str(script), "--shape", arguments.shape, "--decoder-only"]
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


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


if __name__ == "__main__":
    main()
