"""What CI installs, one version of every dependency, and what it runs: the whole check on every Python."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: \d\.\d", name)]
WORKFLOW = (ROOT / ".github/workflows/check.yml").read_text()


def locked() -> Iterator[Requirement]:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.match(r"[a-z0-9-]+==\S+( ; |$)", line), f"{line!r} is no version: run make lock"
        yield Requirement(line)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_locked_version(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions: dict[str, list[str]] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            versions.setdefault(pin.name, []).append(str(pin.specifier).removeprefix("=="))
    extras = PROJECT["optional-dependencies"].values()
    for wanted in map(Requirement, [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]):
        if wanted.name != PROJECT["name"]:
            (version,) = versions.get(wanted.name, ["missing"])
            assert wanted.specifier.contains(version, prereleases=True), f"{wanted}: run make lock"


def test_the_workflow_runs_the_whole_check_on_every_python() -> None:
    (parts,) = re.findall(r"^make (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert re.findall(r"- run: make (\S+)", WORKFLOW) == parts.split()
    (matrix,) = re.findall(r"python: \[(.+)\]", WORKFLOW)
    assert matrix.replace('"', "").split(", ") == PYTHONS
