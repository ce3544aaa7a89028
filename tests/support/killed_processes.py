"""Processes that are killed for real, at a moment of choice, and what they leave behind."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")

# They start from a process that has imported everything.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["acestep_gguf.convert", "acestep_gguf.quantize.requantize", "tests.support.killed_processes"]
)


def die_before_operation(number: int, folder: Path) -> None:
    """Kill this process right before the operation ``number`` on a file in ``folder``."""
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def run(target: Callable[..., None], *arguments: object, kill_after: float | None = None) -> bool:
    """Run in a process; False if it was killed."""
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    if kill_after is not None:
        sleep(kill_after)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in ``folder``."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
