import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.cli.paths import (
    completed_last_path,
    completed_paths,
    typed_path,
    without_dropped_pictures,
)

NAMES = ["plain", "two words", "John's", "back\\slash", 'a "quote"', "größe", "$x;(y)"]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_was_dropped_into_a_question(tmp_path: Path, name: str) -> None:
    picture = tmp_path / f"{name}.png"
    picture.touch()
    escaped = re.sub(r"([^\w/.-])", r"\\\1", str(picture))
    for dropped in (shlex.quote(str(picture)), escaped):
        assert without_dropped_pictures(f"What is {dropped} about?") == ("What is about?", [picture])
        assert without_dropped_pictures(f" {dropped}  ") == ("", [picture])
        assert without_dropped_pictures(f"{dropped} {dropped} Same?") == ("Same?", [picture, picture])


def test_what_is_no_picture_stays_in_the_question(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.png").mkdir()
    for question in (
        f"What does {tmp_path}/notes.txt say?",
        f"Is {tmp_path}/folder.png a folder?",
        f"Is there {tmp_path}/none.png ?",
        "What's 1/2 and '/' and \"/\" ?",
        "a\nb  c",
        "/" + "x" * 5000 + ".png",
        "nu\0ll /a\0b.png",
    ):
        assert without_dropped_pictures(question) == (question, [])


def test_a_path_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/a b.png") == tmp_path / "a b.png"
    (tmp_path / "photo.png").touch()
    assert completed_paths("~/ph") == ["~/photo.png"]
    assert completed_last_path("Who is in ~/ph") == ["Who is in ~/photo.png"]
    assert without_dropped_pictures("Who is in ~/photo.png") == ("Who is in", [tmp_path / "photo.png"])


def test_paths_are_completed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photo 1.png", "photo 2.png", ".phantom", "other.png"):
        (tmp_path / name).touch()
    begin = f"{tmp_path}/pho"
    assert completed_paths(begin) == [f"{begin}to 1.png", f"{begin}to 2.png", f"{begin}tos/"]
    assert completed_paths(f"{tmp_path}/photo 1") == [f"{begin}to 1.png"]
    assert completed_paths(f"{tmp_path}/.p") == [f"{tmp_path}/.phantom"]
    assert completed_paths(f"{tmp_path}/none/") == completed_paths("nu\0ll/") == []
    assert f"{tmp_path}/.phantom" not in completed_paths(f"{tmp_path}/")
    assert completed_last_path("hello") == completed_last_path("") == completed_last_path("1/2") == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    st.text(st.characters(exclude_characters="/\0\n\r", codec="utf-8"), min_size=1, max_size=20), st.data()
)
def test_what_is_completed_in_a_question_is_found_there(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    picture = tmp_path / f"x{name}.png"
    picture.touch()
    try:
        n_typed = data.draw(st.integers(0, len(name)))
        typed = re.sub(r"([\s\\'\"])", r"\\\1", f"{tmp_path}/x{name[:n_typed]}")
        (line,) = completed_last_path(f"What is in {typed}")
        assert without_dropped_pictures(f"{line} now?") == ("What is in now?", [picture])
    finally:
        os.unlink(picture)
