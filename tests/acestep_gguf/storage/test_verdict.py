from pathlib import Path

import pytest

from acestep_gguf.storage.verdict import Verdict


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "acestep-gguf" / "vision-checks"


def never() -> bool:
    raise AssertionError("checked again")


@pytest.mark.parametrize("found", [True, False])
def test_a_check_runs_once(found: bool) -> None:
    assert Verdict("vision", ["a", 1]).known() is None
    assert Verdict("vision", ["a", 1]).found_out(lambda: found) is found
    assert Verdict("vision", ["a", 1]).known() is found
    assert Verdict("vision", ["a", 1]).found_out(never) is found


def test_other_facts_and_other_checks_are_other_verdicts() -> None:
    Verdict("vision", ["a", 1]).found_out(lambda: True)
    assert Verdict("vision", ["a", 2]).known() is None
    assert Verdict("prefill", ["a", 1]).known() is None


def test_a_damaged_verdict_is_found_out_again(folder: Path) -> None:
    Verdict("vision", []).found_out(lambda: True)
    (file,) = folder.iterdir()
    file.write_bytes(b"ye")
    assert Verdict("vision", []).known() is None
    assert Verdict("vision", []).found_out(lambda: False) is False
    assert Verdict("vision", []).known() is False


def test_what_cannot_be_kept_is_asked_again(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"a file")
    assert Verdict("vision", []).found_out(lambda: True) is True
    assert Verdict("vision", []).known() is None
