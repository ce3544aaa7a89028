import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from acestep_gguf.cli import app
from acestep_gguf.cli.cache import clear
from acestep_gguf.errors import UsageError
from acestep_gguf.storage.disk_cache import DiskCache, default_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ACESTEP_GGUF_CACHE_LIMIT", "5M")
    cache = DiskCache(default_folder())
    cache.put(f"state-{1:064x}", np.zeros(2_000_000, np.uint8))
    cache.close()
    return cache.folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cache", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_info_and_clear(folder: Path) -> None:
    assert run("info") == f"folder    {folder}\nentries   1\nsize      2.0 MB\nlimit     5.0 MB\n"
    assert json.loads(run("info", "--json")) == {
        "folder": str(folder),
        "entries": 1,
        "bytes": 2_000_040,
        "limit": 5 * 10**6,
    }
    assert run("clear") == f"removed 1 entries, 2.0 MB, from {folder}\n"
    assert run("clear") == f"removed 0 entries, 0.0 MB, from {folder}\n"
    assert "entries   0" in run("info")


def test_a_folder_that_is_not_there(folder: Path) -> None:
    run("clear")
    folder.rmdir()
    assert "entries   0" in run("info")
    assert run("clear").startswith("removed 0 entries")


def test_a_folder_that_cannot_be_changed(folder: Path) -> None:
    (entry,) = folder.iterdir()
    entry.unlink()
    entry.mkdir()  # root may change everything, but not unlink a folder
    with pytest.raises(UsageError, match=r"cannot be cleared .*: check its permissions"):
        clear()
    os.rmdir(entry)
