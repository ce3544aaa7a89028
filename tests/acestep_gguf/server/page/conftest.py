"""The page in a browser, on a server of two bundles: the demo, and one whose answers go on for a minute."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.demo.questions import CHECKPOINT
from tests.support.browser import installed_browser
from tests.support.live_server import live_server
from tests.support.tiny_checkpoints import TinyCheckpoint

WAIT_MS: Final = 60_000  # for a machine that has much else to do
POLICY: Final = "Content Security Policy"
WIDE: Final = {"width": 1200, "height": 800}

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = installed_browser()
    if path is None:
        pytest.skip("THE PAGE IS NOT TESTED: there is no Chromium (apt-get install chromium)")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # A name that is not this machine's own, for pages without a secure context.
        resolve = "--host-resolver-rules=MAP page.test 127.0.0.1"
        opened = playwright.chromium.launch(executable_path=path, args=[resolve])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    convert_checkpoint(CHECKPOINT, folder / "demo", ("Q4_K_M",))
    endless = TinyCheckpoint(n_layers=6, max_position_embeddings=8192).write(folder / "checkpoint")
    convert_checkpoint(endless, folder / "endless", ("Q8_0",))
    return folder / "demo", folder / "endless"


@pytest.fixture(scope="session")
def url(bundles: tuple[Path, Path], browser: Browser) -> Iterator[str]:
    with live_server(*bundles, "--allowed-host", "page.test") as server:
        yield server.url


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[OpenPage]:
    """Opens the page in a browser of its own, and fails if an error of a script comes up."""
    contexts = []
    errors: list[str] = []

    def opening(address: str = url, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, **settings})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if POLICY in message.text else None)
        page.goto(address)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()
