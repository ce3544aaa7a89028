"""The documentation's pictures of the page; `make screenshots` makes them anew."""

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from acestep_gguf.demo.questions import CHECKPOINT
from tests.acestep_gguf.server.page.conftest import OpenPage
from tests.support.browser import ask, drop, expect_answers

pytestmark = pytest.mark.slow

PICTURES = CHECKPOINT / "pictures"
SIZE = {"width": 1100, "height": 880}
MOST_BYTES = 150_000
DESCRIPTION = (
    "A red square at the top, an orange star on the right, a red circle at the bottom left "
    "and a yellow triangle at the bottom right on a white background."
)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return request.config.getoption("--screenshots") or tmp_path


def take(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    image.convert("RGB").save(path, "PNG", optimize=True)
    assert path.stat().st_size < MOST_BYTES


def test_a_conversation(open_page: OpenPage, folder: Path) -> None:
    page = open_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
    drop(page, PICTURES / "shapes.png")
    ask(page, "Describe this image in detail")
    expect_answers(page, [DESCRIPTION])
    ask(page, "What colour is the star?")
    expect_answers(page, [DESCRIPTION, "orange"])
    page.locator(".cost summary").last.click()
    expect(page.locator(".cost").last).to_contain_text("known from before")
    take(page, folder / "page.png")


def test_a_folder(open_page: OpenPage, folder: Path) -> None:
    page = open_page(viewport=SIZE, color_scheme="dark", reduced_motion="reduce")
    drop(page, PICTURES)
    page.get_by_role("textbox", name="Question for each picture").fill("What colour is the background?")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#folder-state")).to_have_text("3 of 3 pictures answered.")
    expect(page.locator("td:nth-child(2)")).to_have_text(["black", "black", "white"])
    take(page, folder / "page-folder.png")
