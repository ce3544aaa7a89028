import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.cli.demo import convert_and_ask, default_folder, demo
from acestep_gguf.demo import questions as demo_questions
from acestep_gguf.demo.questions import CHECKPOINT, read_questions
from acestep_gguf.errors import BundleError, CheckpointError
from acestep_gguf.plan import machine_settings


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "demo"))
    (folder / "pictures").mkdir()
    questions = []
    for color in ("red", "green", "blue"):
        Image.new("RGB", (40, 30), color).save(folder / "pictures" / f"{color}.png")
        questions.append({"image": f"pictures/{color}.png", "question": f"Is this {color}?"})
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_settings, "usable_cpus", lambda: 1)


@pytest.fixture(autouse=True)
def keep_ctrl_c() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
def test_three_answers_with_their_speed_and_a_bundle_that_is_reused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_questions, "CHECKPOINT", checkpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    demo()
    first = capsys.readouterr().out
    for color in ("red", "green", "blue"):
        assert f"> Is this {color}?" in first
        assert f"{color}.png" in first
    assert first.count("tokens/s") == 6
    bundle = default_folder(checkpoint)
    assert bundle.is_relative_to(tmp_path / "cache")
    made = (bundle / "bundle.json").stat().st_mtime_ns

    demo()
    assert (bundle / "bundle.json").stat().st_mtime_ns == made

    demo(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "bundle.json").exists()


def test_a_folder_that_cannot_be_made_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="--dir"):
        convert_and_ask(checkpoint, tmp_path / "file" / "bundle" / "deeper")


def test_other_weights_get_another_folder(checkpoint: Path) -> None:
    before = default_folder(checkpoint)
    assert default_folder(checkpoint) == before
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert default_folder(checkpoint) != before


def test_a_missing_demo_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not installed"):
        read_questions(tmp_path)


def test_the_demo_checkpoint_ships_three_questions_and_their_pictures() -> None:
    questions = read_questions(CHECKPOINT)
    assert len(questions) == 3
    for question in questions:
        assert question.question
        with Image.open(CHECKPOINT / question.image) as image:
            image.verify()
