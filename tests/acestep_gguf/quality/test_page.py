from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.errors import ImageError
from acestep_gguf.quality.page import html_page
from acestep_gguf.quality.report import Candidate, PictureQuestion, QualityReport
from tests.acestep_gguf.quality.reports import candidate, text_report

EVIL = "<script>alert('&')</script>"


def report(picture: Path, *candidates: Candidate) -> QualityReport:
    asked = (PictureQuestion(picture=str(picture), question=f"What is {EVIL}?"),)
    return QualityReport(bundle=f"Tiny {EVIL}", asked=asked, candidates=candidates)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / '"><img src=x onerror=alert(1)>.png'
    Image.new("RGBA", (900, 10), (200, 30, 30, 128)).save(path)
    return path


def test_everything_on_the_page_is_escaped(picture: Path) -> None:
    page = html_page(report(picture, candidate("F16", EVIL, 3), candidate(f"Q4 {EVIL}", f"other {EVIL}")))
    assert "<script" not in page
    assert "onerror=alert(1)&gt;" in page
    assert page.count("<img ") == 1
    assert 'src="data:image/jpeg;base64,' in page
    assert "default-src &#39;none&#39;" not in page  # our own markup is not
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def test_answers_are_marked_where_they_begin_to_differ(picture: Path) -> None:
    page = html_page(report(picture, candidate("F16", "a red bar", 3), candidate("Q4_K_M", "a red star")))
    assert '<td class="text">a red bar</td>' in page
    assert '<td class="text">a red <mark>star</mark></td>' in page
    assert "12.3" in page
    assert "97.5%" in page


def test_the_page_needs_no_other_file(picture: Path) -> None:
    page = html_page(report(picture, candidate("F16", "a")))
    assert "http://" not in page
    assert "https://" not in page
    assert len(page) < 24_000  # the picture is made small


def test_a_picture_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        html_page(report(tmp_path / "gone.png", candidate("F16", "a")))


def test_the_plot_is_on_the_page_and_its_names_are_escaped(picture: Path) -> None:
    page = html_page(report(picture, candidate("F16", "a", 3, divergence=0), candidate(f"Q4 {EVIL}", "b")))
    assert page.count("<circle") == 1  # the first row has no divergence, which a logarithm has no place for
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_a_page_of_a_text() -> None:
    page = html_page(text_report())
    assert "3 windows of 512 tokens" in page
    assert "<circle" in page
    assert "<section" not in page[page.index("<h1>") :]
