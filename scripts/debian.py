"""Packages of Debian, by name, in a folder: nothing is installed."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def apt_get(folder: Path, suite: str, architecture: str) -> list[str]:
    """The first words of an ``apt-get`` that knows this suite and nothing that is installed; up to date.

    Raises:
        CalledProcessError, OSError: there is no apt-get, or no network.
    """
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    source = f"deb [arch={architecture} signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n"
    (folder / "sources.list").write_text(source)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": f"{folder}/state",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "Dir::Etc::sourcelist": f"{folder}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    words = ["apt-get", "-q", "--yes", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*words, "update"], check=True)
    return words


def extract(packages: Sequence[Path], root: Path) -> None:
    """Put the packages' files below ``root``."""
    for package in sorted(packages):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
