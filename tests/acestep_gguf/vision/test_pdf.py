import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acestep_gguf
from acestep_gguf.errors import ImageError, MissingPackageError
from acestep_gguf.vision import pdf as pdf_module
from acestep_gguf.vision.image_file import MAX_PIXELS, open_image, pdf_pages, undecoded
from acestep_gguf.vision.pdf import split_page
from tests.support.pdf_files import BLUE, NO_PASSWORD_OPENS_IT, RED, pdf

RGB_RED, RGB_BLUE = (255, 0, 0), (0, 0, 255)
# A picture of a pixel, which says that it is larger.
HUGE = (
    "<< /Subtype /Image /Width 20000 /Height 20000 /BitsPerComponent 8 /ColorSpace /DeviceRGB /Length 3 >>\n"
    "stream\nabc\nendstream"
)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf((100, 200, RED), (300, 100, BLUE), (50.5, 50.5, "")))
    return path


def test_a_page_is_a_picture(scan: Path) -> None:
    pages = acestep_gguf.pdf_pages(scan)
    assert [str(page) for page in pages] == [f"{scan}#page={number}" for number in (1, 2, 3)]
    first, second, third = [open_image(page, page_side=64) for page in pages]
    assert (first.size, second.size, third.size) == ((64, 128), (192, 64), (64, 64))
    assert (first.getpixel((9, 9)), second.getpixel((9, 9))) == (RGB_RED, RGB_BLUE)
    assert third.getpixel((9, 9)) == (255, 255, 255)  # paper
    assert first.mode == "RGB"
    assert open_image(str(pages[1]), page_side=64).getpixel((9, 9)) == RGB_BLUE


def test_a_pdf_of_one_page_is_that_page() -> None:
    assert open_image(pdf((10, 10, BLUE))).getpixel((1, 1)) == RGB_BLUE
    assert open_image(b"\n\n" + pdf((10, 10, BLUE))).getpixel((1, 1)) == RGB_BLUE


def test_one_of_several_pages_has_to_be_named(scan: Path) -> None:
    for source in (scan, scan.read_bytes()):
        with pytest.raises(ImageError, match=r"has 3 pages: name one of them, as in FILE\.pdf#page=1"):
            open_image(source)
    with pytest.raises(ImageError, match=r"scan\.pdf#page=4 is not there, its PDF has 3 pages"):
        open_image(f"{scan}#page=4")


def test_what_a_path_names(scan: Path, tmp_path: Path) -> None:
    assert split_page(Path("a.pdf#page=12")) == (Path("a.pdf"), 12)
    for path in ("a.pdf", "a.pdf#page=0", "a.pdf#page=01", "a.pdf#page=", "#page=1", "a.pdf#page=1234567"):
        assert split_page(Path(path)) == (Path(path), None)
    odd = tmp_path / "scan.pdf#page=1"  # a file of this name comes first
    odd.write_bytes(pdf((10, 10, BLUE)))
    assert open_image(odd).getpixel((1, 1)) == RGB_BLUE
    png = tmp_path / "photo.png"
    open_image(pdf((10, 10, RED))).save(png)
    with pytest.raises(ImageError, match="is no PDF, and has no pages"):
        open_image(f"{png}#page=1")
    with pytest.raises(ImageError, match="is no PDF"):
        pdf_pages(png)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pdf((10, 10, RED), trailer=NO_PASSWORD_OPENS_IT), "is encrypted: save it without a password"),
        (b"%PDF-1.7\n", "is damaged"),
        (pdf((10, 10, RED))[:150], "is damaged"),
        (pdf(), "is damaged"),
        (pdf((1, 14_000, RED)), "million pixels"),
        (pdf((0.001, 10, RED)), "is empty or huge"),
        (pdf((10, 10**7, RED)), "is empty or huge"),
        (pdf((10, 10, "q 10 0 0 10 0 0 cm /Im Do Q"), extra=[HUGE]), "million pixels"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pdf"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as caught:
        undecoded(path, page_side=900)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_error_is_not_that_of_the_file_before(tmp_path: Path) -> None:
    for data, words in ((pdf((10, 10, RED), trailer=NO_PASSWORD_OPENS_IT), "encrypted"), (pdf(), "damaged")):
        path = tmp_path / "bad.pdf"
        path.write_bytes(data)
        with pytest.raises(ImageError, match=words):
            undecoded(path, page_side=900)


def test_too_many_pages_are_refused(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_module, "MAX_PAGES", 2)
    with pytest.raises(ImageError, match="has 3 pages: give a PDF of 1 to 2"):
        pdf_pages(scan)


def test_memory_is_known_before_rendering() -> None:
    plain = undecoded(pdf((10, 20, RED)), page_side=100)
    assert plain.size == (100, 200)
    assert plain.decoding_bytes > 7 * 100 * 200  # three bytes a pixel of PDFium's and four of Pillow's
    side = 5_000
    picture = HUGE.replace("20000", str(side))
    drawn = undecoded(pdf((10, 20, "q 1 0 0 1 0 0 cm /Im Do Q"), extra=[picture]), page_side=100)
    assert side * side < MAX_PIXELS
    assert drawn.decoding_bytes > 3 * side * side


def test_the_extra_is_named_where_it_is_missing(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)  # as if it were not installed
    for call in (lambda: open_image(scan), lambda: pdf_pages(scan)):
        with pytest.raises(MissingPackageError) as caught:
            call()
        wanted = f"{scan} is a PDF, which needs the pypdfium2 package: pip install 'acestep-gguf[pdf]'."
        assert str(caught.value) == wanted


def test_many_threads_render_at_once(scan: Path) -> None:
    pages = pdf_pages(scan)
    expected = [np.asarray(open_image(page, page_side=200)) for page in pages]
    start = threading.Barrier(4)

    def render(_: int) -> bool:
        start.wait()
        return all(
            np.array_equal(np.asarray(open_image(page, page_side=200)), wanted)
            for _ in range(20)
            for page, wanted in zip(pages, expected, strict=True)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(render, range(4)))


SAMPLE = pdf((100, 200, RED), (30, 30, "q 9 0 0 9 0 0 cm /Im Do Q"), extra=[HUGE.replace("20000", "1")])


@settings(max_examples=200, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=6)), max_size=5),
    length=st.integers(10, 4000),
    number=st.integers(1, 3),
)
def test_damaged_bytes_raise_nothing_but_image_errors(
    damage: list[tuple[int, bytes]], length: int, number: int
) -> None:
    data = bytearray(SAMPLE[:length])
    for position, patch in damage:
        data[position % len(data) : position % len(data) + len(patch)] = patch
    try:
        image = pdf_module.Page(bytes(data), "the picture", number, 32).render()
    except ImageError:
        return
    assert min(image.size) >= 32
