"""The page for everybody: on a phone, in the dark, with a keyboard and a screen reader."""

import pytest
from playwright.sync_api import Page, expect

from acestep_gguf.demo.questions import CHECKPOINT
from tests.acestep_gguf.server.page.conftest import WIDE, OpenPage
from tests.support.browser import ask, drop, expect_answers, violations

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
PICTURES = CHECKPOINT / "pictures"


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("width", ["wide", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_barriers(open_page: OpenPage, width: str, colours: str) -> None:
    page = open_page(
        viewport=PHONE if width == "phone" else WIDE, color_scheme=colours, reduced_motion="reduce"
    )
    assert not violations(page)
    drop(page, PICTURES / "shapes.png")
    ask(page, "What shape is at the top?")
    expect_answers(page, ["square"])
    page.locator(".cost summary").click()
    assert not violations(page)
    assert fits(page)
    page.get_by_role("button", name="Look at shapes.png").click()
    expect(page.get_by_role("dialog")).to_contain_text("64 tokens")
    assert not violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="Fill in an example").click()
    assert not violations(page)
    page.get_by_role("button", name="Done").click()
    ask(page, "What shape is at the top?")
    expect(page.get_by_role("group", name="Answer as data")).to_be_visible()
    assert not violations(page)
    drop(page, PICTURES)
    page.get_by_role("textbox", name="Question for each picture").fill("What shape is at the top?")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#folder-state")).to_have_text("3 of 3 pictures answered.")
    assert not violations(page)
    assert fits(page)


def test_the_conversations_lie_over_the_page_of_a_phone(open_page: OpenPage) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    assert fits(page)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    assert page.locator("#take-photo").get_attribute("capture") == "environment"
    side = page.get_by_role("complementary", name="Conversations")
    expect(side).to_be_hidden()
    button = page.get_by_role("button", name="Conversations")
    button.click()
    expect(side).to_be_visible()
    expect(page.get_by_role("button", name="New conversation")).to_be_focused()
    assert not violations(page)
    page.keyboard.press("Escape")
    expect(side).to_be_hidden()
    expect(button).to_be_focused()


def test_the_page_is_dark_where_the_system_is_and_as_it_was_chosen(open_page: OpenPage) -> None:
    light = background(open_page(color_scheme="light"))
    page = open_page(color_scheme="dark")
    dark = background(page)
    assert dark != light
    page.get_by_label("Appearance").select_option("light")
    assert background(page) == light
    page.reload()
    assert background(page) == light
    expect(page.get_by_label("Appearance")).to_have_value("light")
