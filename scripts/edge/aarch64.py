"""An ARM board that is played by an emulator: whether it gives the answers that this machine gives.

    python -m scripts.edge.aarch64 WORK

Sets everything up in WORK from Debian's packages and the package index's wheels for ARM, and keeps what is
done: llama.cpp is cross-compiled; Python, numpy and onnxruntime are the ones that a board would install. Then
the demo bundle tokenizes a corpus, has its int8 tower checked and answers questions, here and under QEMU, and
what differs is printed. Needs Debian on x86-64 and the packages in PACKAGES. An emulator says nothing about
how fast a board is.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.demo.questions import CHECKPOINT, read_questions
from scripts.debian import apt_get, extract
from scripts.demo.questions import SKILLS, held_out_questions
from scripts.edge.board_answers import read
from tests.support.texts import TEXTS

ROOT = Path(__file__).parents[2]
PACKAGES = ("cmake", "g++-aarch64-linux-gnu", "qemu-user-static")
PROGRAMS = ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static")
# A Raspberry Pi 5's: the dot product of int8, and float16. QEMU's default has SVE and SME, too, which no such
# board has, and with which onnxruntime's int8 products come out wrong.
CPU = "cortex-a76"
CMAKE = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "-DGGML_BACKEND_DL=OFF",
    "-DGGML_CPU_ALL_VARIANTS=OFF",
    "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",
)
SUITE, PYTHON = "bookworm", "3.11"
DEBIAN = ("python3", "libgomp1", "libstdc++6")
# onnxruntime counts cores and looks for their kind in files, which QEMU takes from this machine otherwise.
FAKED = {
    "proc/cpuinfo": """processor\t: 0
Features\t: fp asimd aes crc32 atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
""",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
}


def libraries(work: Path) -> Path:
    """llama.cpp's libraries for ARM, and its bindings' wheel, which has none."""
    folder = work / "libllama"
    if not folder.exists():
        script = ROOT / "scripts/edge/build_libllama.sh"
        env = os.environ | {"PYTHON": sys.executable}
        subprocess.run([str(script), str(folder), *CMAKE], env=env, check=True)
    return folder


def board_root(work: Path) -> Path:
    """A folder with Debian's Python for ARM and all that it needs."""
    root = work / "root"
    if not (root / "usr/bin/python3").exists():
        words = apt_get(work / "apt", SUITE, "arm64")
        download = ["install", "--download-only", "--no-install-recommends", *DEBIAN]
        subprocess.run([*words, *download], check=True)
        extract([*(work / "apt/cache/archives").glob("*.deb")], root)
    for name, text in FAKED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def packages(work: Path, bindings: Path) -> Path:
    """The runtime's packages for ARM, and this checkout."""
    site = work / "site"
    if not site.exists():
        # Isolated: with this checkout on PYTHONPATH, pip would find it installed already.
        pip = [sys.executable, "-I", "-m", "pip"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(work), str(ROOT)], check=True)
        plain = [*bindings.glob("*.whl"), *work.glob("acestep_gguf-*.whl")]
        unfinished = work / "site.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        for wheel in plain:  # Python alone, whatever the name of the first says of its platform
            shutil.unpack_archive(wheel, unfinished, "zip")
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
        options = [*platforms, "--only-binary=:all:", "--python-version", PYTHON, "--target", str(unfinished)]
        abis = ["--abi=cp311", "--abi=abi3", "--abi=none"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run(
            [*pip, "install", *options, *abis, *constraints, *requirements(unfinished)], check=True
        )
        unfinished.rename(site)
    return site


def requirements(site: Path) -> list[str]:
    """What the two packages that lie in ``site`` already need, without extras."""
    lines = [
        line.removeprefix("Requires-Dist: ")
        for metadata in site.glob("*.dist-info/METADATA")
        for line in metadata.read_text().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    return [line for line in lines if not line.startswith("llama-cpp-python")]


def make_tasks(folder: Path, count: int) -> Path:
    """The demo's questions, ``count`` held-out ones, and texts; pictures beside them."""
    folder.mkdir(exist_ok=True)
    asked = [
        {"name": f"demo {one.image}", "question": one.question, "images": [str(CHECKPOINT / one.image)]}
        for one in read_questions(CHECKPOINT)
    ]
    per_skill = -(-count // len(SKILLS))
    held_out = [list(held_out_questions(skill, per_skill)) for skill in SKILLS]
    # By turns, so that an unfinished run has some of every skill.
    for i, one in enumerate([one for turn in zip(*held_out, strict=True) for one in turn][:count]):
        paths = [folder / f"{i}-{j}.png" for j in range(len(one.images))]
        for path, image in zip(paths, one.images, strict=True):
            image.save(path)
        name = f"held out {i} {one.question.skill}"
        asked.append({"name": name, "question": one.question.text, "images": [*map(str, paths)]})
    tasks = folder / "tasks.json"
    tasks.write_text(json.dumps({"texts": TEXTS, "questions": asked}))
    return tasks


def report(here: dict[str, Any], board: dict[str, Any]) -> None:
    """Tables of what both have found."""
    questions = [name for name in board if name.startswith(("demo ", "held out "))]
    print("| | here | ARM | |\n|---|---|---|---|")
    if "tokens" in board:
        same = sum(one == other for one, other in zip(here["tokens"], board["tokens"], strict=True))
        print(f"| texts tokenized | {len(here['tokens'])} | {len(board['tokens'])} | {same} the same |")
    if "tower" in board:
        ours, theirs = here["tower"], board["tower"]
        print(f"| tower that the int8 check takes | {ours['taken']} | {theirs['taken']} | |")
        print(f"| least cosine of int8 to float32 | {ours['least cosine']} | {theirs['least cosine']} | |")
    for kind in ("demo", "held out"):
        names = [name for name in questions if name.startswith(kind)]
        same = sum(here[name]["tokens"] == board[name]["tokens"] for name in names)
        print(f"| {kind}: answers | {len(names)} | {len(names)} | {same} the same |")
    for name in questions:
        if here[name] != board[name]:
            print(f"\n{name}: {here[name]['text']!r} here, {board[name]['text']!r} on ARM")


def run(python: Sequence[str], work: Path, tasks: Path, out: Path, **variables: str) -> dict[str, Any]:
    command = [*python, "-m", "scripts.edge.board_answers", str(work / "bundle"), str(tasks), str(out)]
    env = os.environ | {"XDG_CACHE_HOME": str(work / "cache")} | variables
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return read(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--questions", type=int, default=100, help="held-out ones (default: 100)")
    parser.add_argument("--report", action="store_true", help="only compare what both have found so far")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    here, board = work / "here.jsonl", work / "board.jsonl"
    if not arguments.report:
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            sys.exit(f"{', '.join(missing)} is missing: apt-get install {' '.join(PACKAGES)}")
        work.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(CHECKPOINT, work / "bundle", ["Q4_K_M"])
        tasks = make_tasks(work / "tasks", arguments.questions)
        run([sys.executable], work, tasks, here)
        llama = libraries(work)
        root, site = board_root(work), packages(work, llama)
        emulator = ["qemu-aarch64-static", "-cpu", CPU, "-L", str(root), str(root / "usr/bin/python3")]
        paths = f"{ROOT}:{site}"
        run(emulator, work, tasks, board, PYTHONPATH=paths, LLAMA_CPP_LIB_PATH=str(llama))
    report(read(here), read(board))


if __name__ == "__main__":
    main()
