"""What may stand after ``-i``."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acestep_gguf.cli.pictures import one_flag_each
from acestep_gguf.errors import UsageError
from acestep_gguf.vision.image_file import open_image
from tests.support.command_line import PROGRAM, acestep, check_is_one_line
from tests.support.pdf_files import BLUE, NO_PASSWORD_OPENS_IT, RED, pdf


@pytest.fixture
def folder(picture: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("10.png", "2.PNG", ".hidden.png", "notes.txt"):
        shutil.copy(picture, folder / name)
    return folder


def test_files_after_a_flag_are_pictures_until_one_is_none(picture: Path, folder: Path) -> None:
    a, b = str(picture), str(folder / "10.png")
    two = ["--image", a, "--image", b]
    assert one_flag_each(["-i", a, b, "What?", a]) == [*two, "What?", a]
    assert one_flag_each(["--image", a, "-n", "2", "-i", b]) == ["--image", a, "-n", "2", "--image", b]
    assert one_flag_each(["-i", "missing.png", b, str(folder)]) == [
        "--image",
        "missing.png",
        *two[2:],
        str(folder),
    ]
    assert one_flag_each(["--", "-i", a, b]) == ["--", "-i", a, b]
    assert one_flag_each(["What?", "-i"]) == ["What?", "-i"]


def test_a_folder_is_its_pictures(folder: Path) -> None:
    found = ["--image", str(folder / "2.PNG"), "--image", str(folder / "10.png")]
    assert one_flag_each(["-i", str(folder), "What?"]) == [*found, "What?"]
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="has no pictures"):
        one_flag_each(["-i", str(folder / "empty")])


def test_encode_takes_a_folder(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    done = acestep("encode", tiny_bundle, folder, "-o", tmp_path / "embeds", "-t", 1)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "embeds").iterdir())
    assert written == ["10.png.safetensors", "2.PNG.safetensors"]


def test_a_pdf_is_its_pages(folder: Path, picture: Path) -> None:
    scan = folder / "1.pdf"
    scan.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    pages = ["--image", f"{scan}#page=1", "--image", f"{scan}#page=2"]
    png = ["--image", str(picture)]
    assert one_flag_each(["-i", str(scan), str(picture), "What?"]) == [*pages, *png, "What?"]
    assert one_flag_each(["-i", str(picture), f"{scan}#page=2", "What?"]) == [*png, *pages[2:], "What?"]
    assert one_flag_each(["-i", str(folder)])[:4] == pages


def test_a_pdf_is_answered_about_or_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    scan, png = tmp_path / "scan.pdf", tmp_path / "page.png"
    scan.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    open_image(f"{scan}#page=2", page_side=64).save(png)

    def answer(*pictures: object, stdin: bytes = b"") -> str:
        done = acestep("run", tiny_bundle, "-i", *pictures, "hi", "-n", 8, "--json", stdin=stdin)
        return str(json.loads(done.stdout)["text"])

    assert answer(f"{scan}#page=2") == answer(png) == answer("-", stdin=pdf((30, 30, BLUE)))
    assert answer(scan) == answer(f"{scan}#page=1", png)
    two_pages = acestep("run", tiny_bundle, "-i", "-", "hi", stdin=scan.read_bytes())
    check_is_one_line(two_pages, "the picture has 2 pages")
    scan.write_bytes(pdf((30, 30, RED), trailer=NO_PASSWORD_OPENS_IT))
    check_is_one_line(acestep("run", tiny_bundle, "-i", scan, "hi"), "scan.pdf is encrypted")


@given(st.lists(st.text() | st.sampled_from(["--", "-", "--image=a", "", "\0"])))
def test_what_has_no_flag_stays_as_it_is(arguments: list[str]) -> None:
    assert one_flag_each(arguments) == arguments


def test_all_ways_to_give_a_picture_are_the_same(tiny_bundle: Path, picture: Path, folder: Path) -> None:
    def answer(*pictures: object, stdin: bytes = b"") -> str:
        done = acestep("run", tiny_bundle, "-i", *pictures, "hi", "-n", 4, "--json", stdin=stdin)
        return str(json.loads(done.stdout)["text"])

    fifo = folder / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", 'cat "$0" >"$1"', str(picture), str(fifo)]):
        by_pipe = answer(fifo)
    assert answer(picture) == answer("-", stdin=picture.read_bytes()) == by_pipe
    assert answer(picture, picture) == answer(folder)


def test_a_picture_in_a_network_is_refused(tiny_bundle: Path) -> None:
    url = "https://example.com/a.png"
    check_is_one_line(acestep("run", tiny_bundle, "-i", url, "hi"), f"{url} is not loaded from a network")


def test_the_picture_that_does_not_tell_its_range_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "depth.tiff"
    Image.new("F", (8, 8)).save(path)
    check_is_one_line(acestep("run", tiny_bundle, "-i", path, "hi"), f"{path} of floating-point numbers")


def test_standard_input_is_one_thing(tiny_bundle: Path) -> None:
    check_is_one_line(acestep("run", tiny_bundle, "-i", "-", stdin=b"What?"), "cannot both be standard input")
    check_is_one_line(acestep("run", tiny_bundle, "-i", "-", "hi", stdin=b"no picture"), "not a picture")
    check_is_one_line(acestep("run", tiny_bundle, "-i", "-", "hi"), "not a picture")
    check_is_one_line(acestep("chat", tiny_bundle, "-i", "-"), "give the path of the picture")
    command = " ".join([*PROGRAM, "run", str(tiny_bundle), "-i", "-", "hi", "<&-"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "there is no picture on standard input" in done.stderr
