import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import UsageError
from acestep_gguf.plan import machine_settings as module
from acestep_gguf.plan.machine_settings import (
    SCHEMA_VERSION,
    MachineSettings,
    Subject,
    Tuned,
    guess,
    machine_settings,
)
from acestep_gguf.plan.settings import Settings

TUNED = MachineSettings(
    use_extra_bufts=False,
    n_threads=1,
    n_threads_batch=1,
    n_ubatch=64,
    flash_attn="off",
    tower_threads=1,
    n_seq_max=4,
)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keep(folder: Path, quant: str) -> Path:
    bundle = Bundle.read(folder)
    subject = Subject.of(bundle, bundle.decoder(quant))
    return Tuned(
        schema_version=SCHEMA_VERSION, subject=subject, settings=TUNED, reason="it was faster"
    ).write()


def found(folder: Path, quant: str) -> tuple[MachineSettings, str]:
    bundle = Bundle.read(folder)
    return machine_settings(bundle, bundle.decoder(quant), pictures=True)


def test_what_was_tuned_is_used_for_that_decoder_only(tiny_bundle: Path) -> None:
    assert found(tiny_bundle, "Q8_0")[1].startswith("guessed: ")
    path = keep(tiny_bundle, "Q8_0")
    assert found(tiny_bundle, "Q8_0") == (TUNED, "tuned: it was faster")
    assert found(tiny_bundle, "F32")[1].startswith("guessed: ")
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_another_machine_guesses(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(tiny_bundle, "Q8_0")
    monkeypatch.setattr(module, "cpu_name", lambda: "another CPU")
    assert found(tiny_bundle, "Q8_0")[1].startswith("guessed: ")
    # Not even if somebody renames the file.
    bundle = Bundle.read(tiny_bundle)
    path.rename(Subject.of(bundle, bundle.decoder("Q8_0")).path())
    assert "made for something else" in found(tiny_bundle, "Q8_0")[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts | {"schema_version": 2},
        lambda facts: facts | {"settings": facts["settings"] | {"n_threads": 0}},
        lambda facts: facts | {"settings": facts["settings"] | {"n_threads_batch": 10**6}},
        lambda facts: facts | {"settings": facts["settings"] | {"tower_threads": usable_cpus() + 1}},
        lambda facts: facts | {"settings": facts["settings"] | {"flash_attn": "perhaps"}},
        lambda facts: facts | {"settings": None},
        lambda facts: facts | {"reason": "x" * 2**20},
        lambda facts: [facts],
    ],
)
def test_a_file_that_is_not_sound_is_not_used_and_that_is_said(tiny_bundle: Path, change: object) -> None:
    path = keep(tiny_bundle, "Q8_0")
    assert callable(change)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    settings, reason = found(tiny_bundle, "Q8_0")
    assert settings == guess(1, pictures=True)[0]
    assert reason.startswith("guessed, since what was tuned cannot be read (")
    assert "tune again" in reason


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json(tiny_bundle: Path, data: bytes) -> None:
    keep(tiny_bundle, "Q8_0").write_bytes(data)
    assert "tune again" in found(tiny_bundle, "Q8_0")[1]


def test_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, pictures, repacks in (
        (frozenset({"avx512_vnni"}), True, False),
        (frozenset({"avx512_vnni"}), False, True),
        (frozenset({"avx2"}), True, True),
        (frozenset({"avx512_vnni", "amx_int8"}), False, False),
        (frozenset[str](), True, True),
    ):
        monkeypatch.setattr(module, "cpu_flags", lambda flags=flags: flags)
        settings, _ = guess(10**6, pictures=pictures)
        assert settings.use_extra_bufts is repacks
        assert settings.n_threads == settings.n_threads_batch == settings.tower_threads == usable_cpus()
    settings, reason = guess(2**60, pictures=False)
    assert not settings.use_extra_bufts
    assert "memory" in reason


def shared(planned: Settings) -> dict[str, object]:
    """What a plan of one answer at a time has in common with the machine's settings."""
    return {name: getattr(planned, name) for name in asdict(TUNED)} | {"n_seq_max": TUNED.n_seq_max}


def test_tuned_sequences_are_the_most_that_are_written_together(tiny_bundle: Path) -> None:
    keep(tiny_bundle, "F32")
    for asked, n in ((-1, TUNED.n_seq_max), (3, 3)):
        with AceStep(tiny_bundle, quant="F32", n_ctx=64, n_parallel=asked) as model:
            assert model.settings.n_seq_max == n


def test_what_is_given_by_hand_wins(tiny_bundle: Path) -> None:
    keep(tiny_bundle, "F32")
    with AceStep(tiny_bundle, quant="F32", n_ctx=64) as model:
        assert shared(model.settings) == asdict(TUNED)
        assert model.settings_reason == "tuned: it was faster"
        assert model.generate("hello", max_tokens=2).text
    with AceStep(tiny_bundle, quant="F32", n_ctx=64, n_threads=2, flash_attn="auto") as model:
        by_hand = replace(TUNED, flash_attn="auto", n_threads=2, n_threads_batch=2, tower_threads=2)
        assert shared(model.settings) == asdict(by_hand)
    with pytest.raises(UsageError, match="n_threads_batch"):
        AceStep(tiny_bundle, n_threads_batch=0)
