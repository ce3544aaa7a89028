"""Limits of the control groups that this process is in, of version 1 and 2 (Linux)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
# Files with a limit of memory, and with what is used of it. Beyond memory.high the kernel kills nothing, but
# slows a group down until it hardly runs.
MEMORY_FILES: Final = (
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What the tightest groups leave: bytes of memory, and CPUs; infinite without a limit."""

    memory_available: float = math.inf
    cpus: float = math.inf


def cgroup_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> CgroupLimits:
    """The limits of this process's groups and of all groups around them.

    Pages of files that a group has read count as available: the kernel drops them when memory gets short.
    """
    memory, cpus = math.inf, math.inf
    for controllers, path in _groups(membership):
        for folder in _upwards(root, controllers, path):
            memory = min(memory, _memory_available(folder))
            cpus = min(cpus, _cpus(folder))
    return CgroupLimits(memory, cpus)


def _groups(membership: Path) -> Iterator[tuple[str, str]]:
    """Controllers and path of each group, from ``4:memory:/a/b`` or, in version 2, ``0::/a/b``."""
    try:
        lines = membership.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers or {"memory", "cpu"} & set(controllers.split(",")):
            yield controllers, path


def _upwards(root: Path, controllers: str, path: str) -> Iterator[Path]:
    """The folders of a group and of those around it; a container may see only the outermost."""
    for mount in [root / controllers] if controllers else [root, root / "unified"]:
        folder = mount / path.strip("/")
        yield from (group for group in (folder, *folder.parents) if group.is_relative_to(mount))


def _memory_available(folder: Path) -> float:
    available = math.inf
    for limit, usage in MEMORY_FILES:
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            available = min(available, max(0.0, most - used + _file_pages(folder)))
    return available


def _file_pages(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split()[:2] for line in lines if len(line.split()) == 2)
    # Version 1 counts descendants under total_*, version 2 always does.
    names = ("active_file", "inactive_file")
    return sum(int(values.get(f"total_{name}", values.get(name, "0"))) for name in names)


def _cpus(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return quota_us / period_us if quota_us and period_us and quota_us > 0 else math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> float | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return math.inf if text == "max" else float(text)
