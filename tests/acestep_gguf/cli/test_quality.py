import json
import sys
from pathlib import Path

import pytest

from acestep_gguf.cli.quality import quality
from acestep_gguf.errors import CheckpointError, ImageError, MissingPackageError, UsageError


def run(bundle: Path, picture: Path, **options: object) -> None:
    quality(bundle, [picture], question=["Who?"], n_predict=4, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_table_and_page(
    tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_bundle, picture, html=tmp_path / "page.html")
    printed = capsys.readouterr()
    assert printed.out.startswith("decoder ")
    assert "Q4_K_M" in printed.out
    assert "asking F32" in printed.err
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Who?" in page


def test_json(tiny_bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_bundle, picture, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["asked"] == [{"picture": str(picture), "question": "Who?"}]
    assert report["candidates"][0]["decoder"] == "F32"
    assert len(report["candidates"][0]["answers"]) == 1


def test_page_that_cannot_be_written_is_found_before_anything_is_asked(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        run(tiny_bundle, picture, html=tmp_path / "none" / "page.html")
    with pytest.raises(UsageError, match="is a folder"):
        run(tiny_bundle, picture, html=tmp_path)


def test_a_folder_is_its_pictures_and_what_is_not_there_is_found_first(
    tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture.read_bytes())
    run(tiny_bundle, folder, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["asked"] == [{"picture": str(folder / "a.png"), "question": "Who?"}]
    with pytest.raises(ImageError):
        run(tiny_bundle, tmp_path / "missing.png")
    assert "asking" not in capsys.readouterr().err


def test_another_checkpoint_is_refused(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        run(tiny_bundle, picture, checkpoint=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="was not made from"):
        run(tiny_bundle, picture, checkpoint=tmp_path)


def test_without_the_extra_the_package_is_named(
    tiny_bundle: Path, tiny_checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"needs the torch package.*acestep-gguf\[reference\]"):
        run(tiny_bundle, picture, checkpoint=tiny_checkpoint)


def test_a_text(tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A red circle above two blue squares. " * 20)
    quality(tiny_bundle, text=text, ctx_size=64, chunks=2, threads=1, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["n_windows"] == 2
    assert "reading with F32" in printed.err
    with pytest.raises(UsageError, match="--text takes the place of pictures"):
        run(tiny_bundle, picture, text=text)
    with pytest.raises(UsageError, match="give --text, too"):
        run(tiny_bundle, picture, chunks=2)
