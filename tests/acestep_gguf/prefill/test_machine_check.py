import platform
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_gguf.bundle.prefill_info import check_prefill_file
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import UsageError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prefill import machine_check, prompt_reader
from tests.acestep_gguf.prefill.conftest import Subject


@pytest.fixture(autouse=True)
def verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows nothing, and has VNNI."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine_check, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    return tmp_path / "acestep-gguf" / "prefill-checks"


def gains(subject: Subject) -> bool:
    assert subject.bundle.prefill is not None
    layout = check_prefill_file(subject.folder, subject.bundle.prefill)
    return machine_check.gains(layout, subject.decoder, n_threads=1)


@pytest.mark.parametrize(("flops", "faster"), [(1.0, True), (1e18, False), (None, False)])
def test_what_was_measured_is_remembered(
    qwen2: Subject, verdicts: Path, monkeypatch: pytest.MonkeyPatch, flops: float | None, faster: bool
) -> None:
    monkeypatch.setattr(machine_check, "product_flops", lambda _type, _n_threads: flops)
    assert gains(qwen2) is faster
    assert [path.read_bytes() for path in verdicts.iterdir()] == [b"yes\n" if faster else b"no\n"]
    monkeypatch.setattr(machine_check, "product_flops", lambda _type, _n_threads: 1 / 0)
    assert gains(qwen2) is faster


def test_once_it_was_measured_onnxruntime_is_not_imported(qwen2: Subject) -> None:
    bundle = str(qwen2.folder)
    code = (
        "import sys; from pathlib import Path; from acestep_gguf.plan.bundle_model import BundleModel;"
        f"from acestep_gguf.prefill.machine_check import gains; files = BundleModel(Path({bundle!r}));"
        "print(gains(files.int8_layers, files.decoder('Q4_K_M'), n_threads=1), 'onnxruntime' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (first, _), (second, is_imported) = (run.stdout.split() for run in runs)
    assert first == second
    assert is_imported == "False"


def test_without_vnni_int8_is_not_trusted(qwen2: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not gains(qwen2)
    with pytest.raises(UsageError, match="no VNNI"):
        machine_check.check_int8()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    machine_check.check_int8()


@pytest.mark.parametrize("is_faster", [True, False])
def test_auto_takes_what_is_faster(qwen2: Subject, monkeypatch: pytest.MonkeyPatch, is_faster: bool) -> None:
    monkeypatch.setattr(prompt_reader, "LEAST_ROWS", 4)
    monkeypatch.setattr(machine_check, "product_flops", lambda _type, _n_threads: 1.0 if is_faster else 1e18)
    with AceStep(qwen2.folder, quant="Q4_K_M", n_threads=1, n_ctx=128) as model:
        assert model.settings.int8_layers == ("kept" if is_faster else None)
        own = model.generate("What is that, and why is it there?", max_tokens=4)
    assert len(own.tokens) == 4
    with AceStep(qwen2.folder, quant="Q4_K_M", n_threads=1, n_ctx=128, prefill="off") as model:
        assert model.settings.int8_layers is None


def test_closing_frees_the_layers(qwen2: Subject) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("Linux only")
    before = maps.read_text().count("prefill-int8.onnx.data")
    model = AceStep(qwen2.folder, n_threads=1, n_ctx=128, prefill="int8")
    assert maps.read_text().count("prefill-int8.onnx.data") == before + 1
    model.close()
    model.close()
    assert maps.read_text().count("prefill-int8.onnx.data") == before


def test_int8_is_read_in_every_way_of_asking(qwen2: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, as messages, and several at once."""
    monkeypatch.setattr(prompt_reader, "LEAST_ROWS", 4)
    texts = ["What is that, and why is it there?", "Where did all of it go, and who was it?"]
    with AceStep(qwen2.folder, n_threads=1, n_ctx=128, prefill="int8") as model:
        alone = [model.generate(text, max_tokens=6).tokens for text in texts]
        turns = [{"role": "user", "content": texts[0]}]
        assert model.generate(turns, max_tokens=6).tokens == alone[0]
    options = AnswerOptions(max_tokens=6)
    with AceStep(qwen2.folder, n_threads=1, n_ctx=128, prefill="int8", n_parallel=2) as model:
        outcomes = list(model.batch(Question(text, (), options) for text in texts))
    together = {outcome.index: outcome.answer for outcome in outcomes}
    assert [answer and answer.tokens for _, answer in sorted(together.items())] == alone
