"""Which CPUs there are to work with."""

import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

CPU_INFO: Final = Path("/proc/cpuinfo")  # Linux only
VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})  # of cpu_flags: exact sums of int8 products


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """What the maker calls the CPU, "unknown CPU" if the system does not say."""
    return next(_cpu_info("model name"), "") or platform.processor() or platform.machine() or "unknown CPU"


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets in Linux's words, such as "avx512_vnni"; empty where the system does not say."""
    return frozenset((next(_cpu_info("flags"), "") or next(_cpu_info("Features"), "")).split())


def _cpu_info(key: str) -> Iterator[str]:
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()
