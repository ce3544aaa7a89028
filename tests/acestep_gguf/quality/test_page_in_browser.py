"""The page in a browser: readable in the light and in the dark, and by screen readers."""

from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from acestep_gguf.quality.page import html_page
from acestep_gguf.quality.report import PictureQuestion, QualityReport
from tests.acestep_gguf.quality.reports import candidate
from tests.support.browser import installed_browser


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_barriers(scheme: Literal["light", "dark"], tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    browser = installed_browser()
    if browser is None:
        pytest.skip("THE PAGE IS NOT TESTED: there is no Chromium (apt-get install chromium)")
    picture = tmp_path / "picture.png"
    Image.linear_gradient("L").save(picture)
    report = QualityReport(
        bundle="Tiny",
        asked=(PictureQuestion(picture=str(picture), question="What is this?"),),
        candidates=(
            candidate("F16", "a red bar", 3, divergence=0),
            candidate("Q8_0", "a red bar", 3, megabytes=8, divergence=0.0003),
            candidate("Q4_K_M", "a red star", megabytes=5),
        ),
    )
    path = tmp_path / "page.html"
    path.write_text(html_page(report))
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser)
        # Without the page's own policy, which does not let axe in.
        page = opened.new_context(color_scheme=scheme, bypass_csp=True).new_page()
        page.goto(path.as_uri())
        dots: Any = page.locator("svg circle").all()
        assert [dot.is_visible() for dot in dots] == [True, True]
        colour = "element => getComputedStyle(element).fill"
        assert dots[0].evaluate(colour) == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
        assert page.get_by_role("img", name="KL divergence against size").is_visible()
        violations = Axe().run(page).response["violations"]
        opened.close()
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []
