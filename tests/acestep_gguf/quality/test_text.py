"""Quantizations compared on a text, as llama-perplexity does it."""

import json
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.demo.questions import CHECKPOINT
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama.text_chunks import read_text
from acestep_gguf.quality.text import compare_on_text, measure_text
from tests.support.tiny_checkpoints import TinyCheckpoint

GOLDEN = Path("tests/golden/perplexity.json")
TEXT = "A red circle above two blue squares. " * 40


@pytest.mark.slow
def test_figures_are_those_of_the_real_llama_perplexity(tmp_path: Path) -> None:
    """What it printed; on its machine they agree within 1e-3 (scripts/checks/perplexity.py).

    Another CPU adds up in another order, which moves divergences by some percent.
    """
    golden = json.loads(GOLDEN.read_text())
    ftypes = list(golden["figures"])
    bundle = convert_checkpoint(CHECKPOINT, tmp_path, ftypes, vision=["float32"])
    decoders = {ftype: tmp_path / bundle.decoder(ftype).file for ftype in ftypes}
    text = read_text(GOLDEN.with_suffix(".txt"))
    report = compare_on_text("demo", decoders, text, n_ctx=golden["n_ctx"], max_windows=golden["n_windows"])
    assert report.n_windows == golden["n_windows"]
    for found in report.candidates:
        expected = golden["figures"][found.decoder]
        divergence = found.kl_divergence
        assert found.perplexity.value == pytest.approx(expected["perplexity"], rel=1e-2)
        assert report.base_perplexity.value == pytest.approx(expected["perplexity of the base"], rel=1e-2)
        assert divergence.mean.value == pytest.approx(expected["mean KLD"], rel=0.1, abs=1e-5)
        assert divergence.p90.value == pytest.approx(expected["90 % KLD"], rel=0.1, abs=1e-5)
        assert divergence.p99.value == pytest.approx(expected["99 % KLD"], rel=0.3, abs=1e-4)
        assert 100 * found.top_1.value == pytest.approx(expected["top-1"], abs=1)


def test_the_decoder_with_the_most_bits_is_what_others_are_compared_with(tiny_bundle: Path) -> None:
    told: list[str] = []
    report = measure_text(tiny_bundle, TEXT, n_ctx=64, max_windows=2, on_candidate=told.append)
    assert told == [found.decoder for found in report.candidates]
    best, *others = report.candidates
    assert best.decoder == "F32"
    assert best.kl_divergence.mean.value == pytest.approx(0, abs=1e-5)
    assert report.n_windows == 2
    quantized = next(found for found in others if found.decoder == "Q4_K_M")
    assert quantized.kl_divergence.mean.value > 1e-4
    assert quantized.bytes < best.bytes


def test_calls_of_llama_cpp_end_nowhere_in_the_figures(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_text(tiny_bundle, TEXT, n_ctx=64, max_windows=2)
    monkeypatch.setattr("acestep_gguf.quality.text.N_BATCH", 20)
    monkeypatch.setattr("acestep_gguf.quality.text.PIECE", 7)
    parts = measure_text(tiny_bundle, TEXT, n_ctx=64, max_windows=2)
    for one, other in zip(whole.candidates, parts.candidates, strict=True):
        assert one.perplexity.value == pytest.approx(other.perplexity.value, rel=1e-2)
        divergence = other.kl_divergence.mean.value
        assert one.kl_divergence.mean.value == pytest.approx(divergence, rel=0.1, abs=1e-4)


def test_decoders_of_two_models_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(n_padding_rows=20).write(tmp_path / "c")
    other = convert_checkpoint(checkpoint, tmp_path / "b", ["F16"], vision=["float32"])
    files = {"one": next(tiny_bundle.glob("*F32.gguf")), "other": tmp_path / "b" / other.decoder().file}
    with pytest.raises(DecodeError, match="different vocabularies"):
        compare_on_text("", files, TEXT, n_ctx=64)


def test_bad_requests(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 128 tokens"):
        measure_text(tiny_bundle, "Too short.", n_ctx=64)
    for n_ctx, max_windows in ((3, None), (8193, None), (64, 1)):
        with pytest.raises(UsageError):
            measure_text(tiny_bundle, TEXT, n_ctx=n_ctx, max_windows=max_windows)
    with pytest.raises(UsageError, match="n_threads is 0"):
        measure_text(tiny_bundle, TEXT, n_ctx=64, n_threads=0)
