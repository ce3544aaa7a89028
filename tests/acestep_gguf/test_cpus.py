import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep_gguf import cpus

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: fp asimd asimddp\n"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    for known in (cpus.cpu_name, cpus.cpu_flags):
        known.cache_clear()
    yield
    for known in (cpus.cpu_name, cpus.cpu_flags):
        known.cache_clear()


@pytest.mark.parametrize(("text", "flag", "name"), [(X86, "avx512_vnni", "AMD EPYC"), (ARM, "asimddp", None)])
def test_what_linux_tells(
    text: str, flag: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(cpus, "CPU_INFO", path)
    assert flag in cpus.cpu_flags()
    assert len(cpus.cpu_flags()) == 3
    assert cpus.cpu_name() == name or (name is None and cpus.cpu_name())


def test_where_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "CPU_INFO", tmp_path / "none")
    assert cpus.cpu_flags() == frozenset()
    assert cpus.cpu_name()


def test_affinity_counts() -> None:
    assert 1 <= cpus.usable_cpus() <= (os.cpu_count() or 1)
