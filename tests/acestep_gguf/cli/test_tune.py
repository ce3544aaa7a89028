import json
from pathlib import Path

import pytest

from acestep_gguf.cli.info import facts_and_settings
from acestep_gguf.cli.tune import tune
from acestep_gguf.cpus import cpu_flags
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.params import AMX


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_it_prints_it_keeps(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts_and_settings(tiny_bundle)["settings_reason"].startswith("guessed: ")
    tune(tiny_bundle, quant=None, budget=1, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert json.loads(Path(facts["file"]).read_text())["settings"] == facts["settings"]
    assert facts_and_settings(tiny_bundle)["settings"] == facts["settings"]
    assert facts_and_settings(tiny_bundle)["settings_reason"] == f"tuned: {facts['reason']}"


def test_the_table_marks_what_is_used(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(tiny_bundle, quant="q8_0", budget=1, as_json=False)
    out, err = capsys.readouterr()
    repacking = [line for line in out.splitlines() if line.startswith("use_extra_bufts")]
    assert sorted(line.split()[1] for line in repacking) == (["off"] if AMX in cpu_flags() else ["off", "on"])
    assert [line.endswith("used") for line in repacking].count(True) == 1
    assert "leave the machine alone" in err
    assert "kept in" in err


def test_a_result_that_cannot_be_kept(tiny_bundle: Path, cache_home: Path) -> None:
    cache_home.write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        tune(tiny_bundle, quant=None, budget=1, as_json=True)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_budgets_that_make_no_sense(tiny_bundle: Path, budget: float) -> None:
    with pytest.raises(UsageError, match="--budget"):
        tune(tiny_bundle, quant=None, budget=budget, as_json=False)
