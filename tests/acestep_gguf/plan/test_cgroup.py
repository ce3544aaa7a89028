"""Limits of control groups, in trees as the kernel shows them."""

import math
from pathlib import Path

from acestep_gguf.plan.cgroup import CgroupLimits, cgroup_limits


def tree(root: Path, files: dict[str, str], membership: str) -> CgroupLimits:
    for name, text in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    return cgroup_limits(root / "fs", root / "membership")


def test_version_1_counts_file_pages_as_available(tmp_path: Path) -> None:
    files = {
        "memory/a/b/memory.limit_in_bytes": "1000000\n",
        "memory/a/b/memory.usage_in_bytes": "700000\n",
        "memory/a/b/memory.stat": "cache 1\ntotal_active_file 100000\ntotal_inactive_file 50000\n",
        "cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
    }
    limits = tree(tmp_path, files, "4:memory:/a/b\n1:cpu,cpuacct:/a\n3:pids:/x\n")
    assert limits == CgroupLimits(450_000, 1.5)


def test_version_2_takes_the_tightest_of_all_groups_around(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "500000\n",
        "a/memory.current": "100000\n",
        "a/memory.stat": "anon 5\nactive_file 1000\ninactive_file 2000\n",
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "90000\n",
        "a/cpu.max": "max 100000\n",
        "a/b/cpu.max": "50000 100000\n",
    }
    assert tree(tmp_path, files, "0::/a/b\n") == CgroupLimits(403_000, 0.5)


def test_a_group_is_not_filled_to_where_it_is_slowed_down(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "500000\n",
        "a/memory.high": "300000\n",
        "a/memory.current": "100000\n",
        "a/b/memory.max": "250000\n",
        "a/b/memory.high": "max\n",
        "a/b/memory.current": "20000\n",
    }
    assert tree(tmp_path, files, "0::/a/b\n").memory_available == 200_000


def test_without_limits_or_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    unlimited = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}
    assert tree(tmp_path, unlimited, "4:memory:/gone\n").memory_available > 2**60
    assert cgroup_limits(tmp_path / "nowhere", tmp_path / "nothing") == CgroupLimits(math.inf, math.inf)
    assert tree(tmp_path, {}, "nonsense\n") == CgroupLimits()


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"memory.max": "100", "memory.current": "200"}
    assert tree(tmp_path, files, "0::/\n").memory_available == 0
