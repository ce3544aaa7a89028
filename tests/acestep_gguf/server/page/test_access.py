"""The key of a server: asked for when it is needed, and kept as long as the tab."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.acestep_gguf.server.page.conftest import OpenPage
from tests.support.browser import ask, violations
from tests.support.live_server import KEY, live_server

pytestmark = pytest.mark.slow


def test_the_key_is_asked_for_and_kept_for_the_session(
    open_page: OpenPage, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY)
    with live_server(tiny_bundle, "--api-key-file", tmp_path / "key") as server:
        page = open_page(server.url)
        dialog = page.get_by_role("dialog", name="This server asks for its key")
        key = dialog.get_by_label("API key")
        expect(key).to_be_focused()
        assert not violations(page)
        key.fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("That is not its key.")
        key.fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.get_by_label("Model")).to_have_value(tiny_bundle.name)
        page.reload()
        expect(page.get_by_label("Model")).to_have_value(tiny_bundle.name)
        assert kept(page) == {"session": True, "local": False}

        other = page.context.new_page()  # another tab is another session
        other.goto(server.url)
        dialog = other.get_by_role("dialog", name="This server asks for its key")
        dialog.get_by_role("button", name="Cancel").click()
        expect(other.get_by_role("alert")).to_contain_text("API key")
        ask(other, "Hello")
        expect(dialog).to_be_visible()


def kept(page: Page) -> dict[str, bool]:
    stored = page.evaluate("[sessionStorage, localStorage].map((storage) => JSON.stringify({ ...storage }))")
    session, local = (KEY in text for text in stored)
    return {"session": session, "local": local}
