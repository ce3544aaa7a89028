"""Debian's Chromium, driven as a person drives it: real drops of files, and what a screen reader is told."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
AXE: Final = Axe()


def installed_browser() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def drop(page: Page, *paths: Path) -> None:
    """Drop files and folders onto the middle of the page, by its own events; wait until it has them."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    width, height = page.evaluate("[innerWidth, innerHeight]")
    page.evaluate("window.got = new Promise((got) => addEventListener('drop', got, { once: true })), null")
    session = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        place = {"x": width / 2, "y": height / 2}
        session.send("Input.dispatchDragEvent", {"type": event, **place, "data": data})
    session.detach()
    page.evaluate("got.then(() => null)")


def paste(page: Page, path: Path) -> None:
    """Paste a picture as a browser hands it over; a headless one has no clipboard of pictures."""
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        [list(path.read_bytes()), path.name],
    )


def ask(page: Page, question: str) -> None:
    """Write a question and ask it."""
    page.get_by_role("textbox", name="Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def body(request: Request) -> dict[str, Any]:
    """What a request of the page asked for."""
    data: dict[str, Any] | None = request.post_data_json
    assert data is not None
    return data


def expect_answers(page: Page, texts: Sequence[str]) -> None:
    """Wait until the answers are these, and none is being written."""
    answers = page.get_by_role("article", name="Answer")
    expect(answers.locator(".text")).to_have_text(list(texts))
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def violations(page: Page) -> str:
    """What axe finds wrong with the page as it is now, by WCAG A and AA and by good practice."""
    found = AXE.run(page)
    return "" if not found.violations_count else str(found.generate_report())
