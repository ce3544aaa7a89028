"""What a board needs: the size of an install without extras, and the time and memory of its first answers.

    python -m scripts.edge.runtime_install WORK BUNDLE PICTURE QUESTION

WORK gets a wheel of this checkout and a virtual environment with it; what is there is kept. The bundle is
asked on one core, in a control group of 512 MB, where the only network is a loopback that is down. Linux, as
root. With LLAMA_CPP_LIB_PATH, llama-cpp-python is the wheel of that folder (build_libllama.sh makes both).
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path

from scripts.bench.memory_group import MemoryGroup, memory_group
from scripts.bench.process_cost import Cost, measured

ROOT = Path(__file__).parents[2]
LIMIT = 512 * 10**6
CORE = "0"
ROUNDS = 5


def install(work: Path) -> Path:
    """A virtual environment in ``work`` with this checkout's wheel, without extras."""
    environment = work / "venv"
    if not (environment / "bin/acestep-gguf").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        # Isolated: with this checkout on PYTHONPATH, pip would find it installed already.
        pip = [str(environment / "bin/python"), "-I", "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(work), str(ROOT)], check=True)
        shared = os.environ.get("LLAMA_CPP_LIB_PATH")
        wheels = [*work.glob("acestep_gguf-*.whl"), *(Path(shared).glob("*.whl") if shared else ())]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "install", *constraints, *map(str, wheels)], check=True)
    return environment


def installed_sizes(environment: Path) -> dict[str, int]:
    """Bytes of each package's files, with the compiled ones of Python, the largest first."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    sizes = {
        found.name: installed_size(found)
        for found in distributions(path=[str(packages)])
        if found.name not in ("pip", "setuptools")  # of the virtual environment, not asked for
    }
    return dict(sorted(sizes.items(), key=lambda size: -size[1]))


def installed_size(package: Distribution) -> int:
    paths = [Path(str(file.locate())) for file in package.files or ()]
    return sum(path.lstat().st_size for path in paths if path.exists())


def print_sizes(sizes: Mapping[str, int], smallest: int = 1_000_000) -> None:
    """A table; packages below ``smallest`` bytes share a row."""
    large = {name: size for name, size in sizes.items() if size >= smallest}
    others = {name: size for name, size in sizes.items() if size < smallest}
    print("| package | MB |\n|---|---|")
    for name, size in large.items():
        print(f"| {name} | {size / 1e6:.1f} |")
    print(f"| {', '.join(sorted(others))} | {sum(others.values()) / 1e6:.1f} |")
    print(f"| all | {sum(sizes.values()) / 1e6:.1f} |\n")


@contextmanager
def board(limit: int = LIMIT) -> Iterator[tuple[list[str], MemoryGroup]]:
    """Words before a command that run it on one core, offline, in a group of ``limit`` bytes; the group.

    Raises:
        OSError: no control group of memory can be made here.
    """
    with memory_group() as group:
        group.limit(limit)
        yield group.command("taskset", "--cpu-list", CORE, "unshare", "--net"), group


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache, as if the board had just been switched on."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def median(costs: Sequence[Cost]) -> tuple[float, float]:
    """Seconds to the first byte of output, and to the end."""
    first = statistics.median(cost.byte_s[0] for cost in costs)
    return first, statistics.median(cost.seconds for cost in costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    environment = install(work)
    print_sizes(installed_sizes(environment))

    program = str(environment / "bin/acestep-gguf")
    asked = [program, "run", str(arguments.bundle), "--image", str(arguments.picture), arguments.question]
    env = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}
    env.pop("PYTHONPATH", None)
    for folder in (environment, arguments.bundle):
        forget(folder)
    with board() as (words, group):
        from_disk = measured([*words, *asked, "--no-cache"], env)
        peak_bytes = group.peak
        answered = [measured([*words, *asked, "--no-cache"], env) for _ in range(ROUNDS)]
        helped = [measured([*words, program, "--version"], env) for _ in range(ROUNDS)]

    print(from_disk.stdout.decode())
    first, end = median(answered)
    print("| one core, 512 MB, no network | |\n|---|---|")
    print(f"| `--version` | {median(helped)[1]:.2f} s |")
    print(f"| first word of an answer about a new picture | {first:.2f} s |")
    print(f"| the whole answer, program ended | {end:.2f} s |")
    print(f"| the same, files read from disk | {from_disk.byte_s[0]:.2f} s, {from_disk.seconds:.2f} s |")
    print(f"| anonymous memory at its peak | {max(cost.anonymous for cost in answered) / 1e6:.0f} MB |")
    print(f"| resident memory at its peak, libraries included | {from_disk.resident / 1e6:.0f} MB |")
    print(f"| the control group's peak, files read included | {peak_bytes / 1e6:.0f} MB |")


if __name__ == "__main__":
    main()
