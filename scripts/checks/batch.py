"""Kill a batch at random moments, and see that its table is the one of an undisturbed run.

    acestep-gguf convert acestep_gguf/demo demo-bundle
    python -m scripts.checks.batch --work /tmp/batch-check demo-bundle -- --threads 1

Pictures are drawn as those that the demo checkpoint learned from; one in ten is broken in some way.
What stands behind ``--`` goes to both runs. The undisturbed one is also watched for memory that grows.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from scripts.demo.scenes import draw, random_chart, random_number, random_scene

QUESTION: Final = "Describe this image in detail."
ONE_IN: Final = 10
MOST_GROWTH: Final = 1.02
MOST_DIFFERING: Final = 0.01  # of the rows, where several answers are written together
# Memory pools of libraries are full after so many rows; of the demo bundle's 70 MiB, a fiftieth is little.
FIRST_ROWS: Final = 50

BREAK: Final[tuple[Callable[[bytes, Random], bytes], ...]] = (
    lambda data, rng: data[: rng.randrange(1, len(data) - 100)],
    lambda data, rng: rng.randbytes(len(data)),
    lambda _data, _rng: b"",
    lambda _data, _rng: b"<html>404 Not Found</html>",
)


def draw_pictures(folder: Path, n_pictures: int, rng: Random) -> int:
    """Draw the pictures; gives how many are broken."""
    folder.mkdir(parents=True)
    broken = {number for number in range(n_pictures) if number % ONE_IN == ONE_IN // 2}
    for number in range(n_pictures):
        path = folder / f"{number}.png"
        picture = rng.choice((random_scene, random_number, random_chart))(rng, False)
        draw(picture, rng, (448, 448))[0].save(path)
        if number in broken:
            path.write_bytes(rng.choice(BREAK)(path.read_bytes(), rng))
    return len(broken)


def n_rows(output: Path) -> int:
    """Rows that are in the journal."""
    journal = output.with_name(output.name + ".journal")
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def start(command: Sequence[str], output: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.DEVNULL)


def anonymous_memory(pid: int) -> int:
    """Bytes; 0 if the process is gone."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * int(found[1]) if found else 0


def undisturbed(command: Sequence[str], output: Path) -> tuple[int, int]:
    """Run to the end; gives the most anonymous memory after ``FIRST_ROWS`` rows, and at the end."""
    early = late = 0
    with start(command, output) as process:
        while process.poll() is None:
            memory = anonymous_memory(process.pid)
            if n_rows(output) <= FIRST_ROWS:
                early = max(early, memory)
            late = max(late, memory)
            time.sleep(0.05)
    return early, late


def killed(command: Sequence[str], output: Path, n_kills: int, n_pictures: int, rng: Random) -> int:
    """Kill it ``n_kills`` times, at moments all over the run, and let it end; gives how many kills hit."""
    done = 0
    for kill in range(n_kills):
        with start(command, output) as process:
            wanted = n_rows(output) + rng.randrange(1, max(2, 2 * n_pictures // (n_kills + 4)))
            while process.poll() is None and n_rows(output) < wanted and kill % 4:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))  # some die before they got anywhere
            process.kill()
        done += process.returncode == -signal.SIGKILL
    with start(command, output):
        pass
    return done


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder that is not there yet")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("options", nargs="*", help="behind --: options for `batch`")
    arguments = parser.parse_args()

    rng = Random(arguments.seed)
    pictures, whole, again = (arguments.work / name for name in ("pictures", "whole.jsonl", "again.jsonl"))
    n_broken = draw_pictures(pictures, arguments.pictures, rng)
    program = [sys.executable, "-m", "acestep_gguf.cli", "batch", str(arguments.bundle), str(pictures)]
    command = [*program, "-p", QUESTION, *arguments.options]

    began = time.perf_counter()
    early, late = undisturbed(command, whole)
    seconds = time.perf_counter() - began
    n_killed = killed(command, again, arguments.kills, arguments.pictures, rng)

    expected, found = rows(whole), rows(again)
    paths = [str(pictures / f"{number}.png") for number in range(arguments.pictures)]
    journal = again.with_name(again.name + ".journal").read_bytes().splitlines()[1:]
    n_differing = sum(ours["text"] != theirs["text"] for ours, theirs in zip(expected, found, strict=True))
    n_errors = sum(row["error"] is not None for row in found)
    checks = [
        ("killed", f"{n_killed} of {arguments.kills} times", True),
        ("rows, in the order of the pictures", len(found), [row["path"] for row in found] == paths),
        ("answers that were asked for", len(journal), len(journal) == arguments.pictures),
        ("errors", f"{n_errors}, {n_broken} broken", n_errors == n_broken),
        ("texts that differ", n_differing, n_differing <= MOST_DIFFERING * arguments.pictures),
        ("anonymous memory, end to start", f"{late / early:.3f}", late <= MOST_GROWTH * early),
    ]
    print(f"{os.cpu_count()} CPUs, {60 * arguments.pictures / seconds:.1f} pictures a minute undisturbed\n")
    print("| | | holds |\n|---|---|---|")
    for what, figure, holds in checks:
        print(f"| {what} | {figure} | {'yes' if holds else '**no**'} |")
    sys.exit(not all(holds for _, _, holds in checks))


if __name__ == "__main__":
    main()
