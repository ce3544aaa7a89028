"""What running a program costs: seconds, memory at its peak, bytes read and written; Linux's /proc tells.

Memory is sampled over the process and its children.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30
SAMPLE_S = 0.02


@dataclass
class Cost:
    """What one or several processes, run one after the other, cost; and what the last one wrote, and when.

    ``byte_s`` has the seconds after which each byte of standard output came.
    """

    seconds: float = 0.0
    anonymous: int = 0  # peak bytes
    resident: int = 0  # peak bytes
    read: int = 0
    written: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    byte_s: list[float] = field(default_factory=list)

    def add(self, other: "Cost") -> None:
        self.seconds += other.seconds
        self.anonymous = max(self.anonymous, other.anonymous)
        self.resident = max(self.resident, other.resident)
        self.read += other.read
        self.written += other.written


def measured(
    command: Sequence[str], env: dict[str, str] | None = None, *, sample_s: float = SAMPLE_S
) -> Cost:
    """Run a command until it ends, sampling its memory every so often; a failure ends this program."""
    cost = Cost()
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        readers = [
            threading.Thread(target=read_stdout, args=(process, started, cost)),
            threading.Thread(target=read_stderr, args=(process, cost)),
        ]
        for reader in readers:
            reader.start()
        while process.poll() is None:
            sample(process.pid, cost)
            time.sleep(sample_s)
        cost.seconds = time.perf_counter() - started
        for reader in readers:
            reader.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{cost.stderr.decode(errors='replace')[-2000:]}")
    return cost


def read_stdout(process: subprocess.Popen[bytes], started: float, cost: Cost) -> None:
    assert process.stdout is not None
    while data := process.stdout.read1(2**16):  # type: ignore[attr-defined]
        cost.byte_s += [time.perf_counter() - started] * len(data)
        cost.stdout += data


def read_stderr(process: subprocess.Popen[bytes], cost: Cost) -> None:
    assert process.stderr is not None
    cost.stderr = process.stderr.read()


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
