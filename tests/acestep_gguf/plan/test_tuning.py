from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import cpu_flags, usable_cpus
from acestep_gguf.errors import BundleError
from acestep_gguf.llama.params import AMX
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.plan.tuning import Trial, compete, tune, worth_leaving


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def speeds(**rounds: list[float]) -> tuple[Callable[[str], float], list[str]]:
    """A speed for each round of each candidate, and who was measured when."""
    order: list[str] = []
    left: dict[str, Iterator[float]] = {name: iter(values) for name, values in rounds.items()}

    def speed(name: str) -> float:
        order.append(name)
        return next(left[name])

    return speed, order


def test_who_loses_the_first_round_is_out() -> None:
    speed, order = speeds(champion=[100.0], other=[102.9])
    assert compete("champion", ["other"], speed) == ("champion", {"champion": 100.0, "other": 102.9})
    assert order == ["champion", "other"]


def test_the_median_of_rounds_in_turn_decides() -> None:
    speed, order = speeds(champion=[100, 100, 50], other=[110, 111, 40])
    assert compete("champion", ["other"], speed)[0] == "other"
    assert order == ["champion", "other"] * 3
    speed, _ = speeds(champion=[60, 100, 100], other=[110, 100, 100])  # a slow first round is no proof
    assert compete("champion", ["other"], speed)[0] == "champion"


def test_the_winner_defends_its_place() -> None:
    speed, _ = speeds(a=[1, 1, 1], b=[2] * 5, c=[3] * 3)
    assert compete("a", ["b", "c"], speed)[0] == "c"


def trial(prefill: float, decode: float, load_s: float) -> Trial:
    return Trial(setting="use_extra_bufts", value=True, load_s=load_s, prefill=prefill, decode=decode)


def test_repacking_is_left_for_a_faster_request_but_never_for_slower_prefill() -> None:
    default = trial(80, 27, 1.9)
    assert worth_leaving(default, trial(130, 24, 0.5), 1088)
    assert not worth_leaving(default, trial(81, 26, 1.9), 1088)
    assert not worth_leaving(default, trial(130, 5, 0.5), 1088)
    assert not worth_leaving(default, trial(77, 40, 0.1), 64)


@pytest.mark.slow
def test_a_search_over_a_tiny_bundle(tiny_bundle: Path) -> None:
    tuning = tune(tiny_bundle, quant="F32", budget_s=60)
    bundle = Bundle.read(tiny_bundle)
    tuning.tuned.write()
    settings, reason = machine_settings(bundle, bundle.decoder("F32"), pictures=True)
    assert settings == tuning.tuned.settings
    assert reason == f"tuned: {tuning.tuned.reason}"
    measured = {trial.setting for trial in tuning.trials}
    assert {"use_extra_bufts", "flash_attn", "n_seq_max"} <= measured
    assert settings.n_seq_max in [t.value for t in tuning.trials if t.setting == "n_seq_max"]
    assert ("n_threads" in measured) == (usable_cpus() > 1)
    tried = [t.value for t in tuning.trials if t.setting == "use_extra_bufts"]
    assert tried == ([False] if AMX in cpu_flags() else [False, True])
    for one in tuning.trials:
        assert any((one.prefill, one.decode, one.tower_s))


def test_without_time_only_repacking_is_measured(tiny_bundle: Path) -> None:
    tuning = tune(tiny_bundle, quant="F32", budget_s=0.001)
    assert {trial.setting for trial in tuning.trials} == {"use_extra_bufts"}
    assert any("no time" in what for what in tuning.skipped)
    assert tuning.tuned.settings.n_threads == usable_cpus()


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        tune(tmp_path)
