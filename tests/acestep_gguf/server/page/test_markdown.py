"""Markdown becomes nodes: what it means, and that nothing in it can act."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tests.acestep_gguf.server.page.conftest import OpenPage
from tests.support.browser import ask, expect_answers

pytestmark = pytest.mark.slow

RENDER = """async (text) => {
    const { markdown } = await import("./markdown.js");
    const host = document.createElement("div");
    const began = performance.now();
    host.append(...markdown(text));
    const nodes = [...host.querySelectorAll("*")];
    return {
        html: host.innerHTML,
        text: host.textContent,
        ms: performance.now() - began,
        tags: nodes.map((node) => node.localName),
        attributes: nodes.flatMap((node) => node.getAttributeNames()),
        links: nodes.filter((node) => node.href !== undefined).map((node) => [node.protocol, node.rel]),
    };
}"""
TAGS = {
    *("p", "br", "strong", "em", "del", "code", "pre", "a", "span", "ul", "ol", "li", "blockquote", "hr"),
    *("h3", "h4", "h5", "h6", "div", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"href", "target", "rel", "class", "tabindex", "role", "aria-label", "start", "scope"}


@pytest.fixture(scope="module")
def blank(browser: Any, url: str) -> Any:
    page = browser.new_page()
    page.goto(url)
    yield page
    page.close()


EXAMPLES = [
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("**a** *b* `c*d*`", "<p><strong>a</strong> <em>b</em> <code>c*d*</code></p>"),
    ("__a__ _b_ ~~c~~", "<p><strong>a</strong> <em>b</em> <del>c</del></p>"),
    ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
    ("***d***", "<p><strong><em>d</em></strong></p>"),
    ("snake_case_name 2 * 3 * 4 \\*a\\*", "<p>snake_case_name 2 * 3 * 4 *a*</p>"),
    ("# One\n## Two ##", "<h3>One</h3><h4>Two</h4>"),
    ("- a\n  - b\n- c\n\n- d", "<ul><li>a<ul><li>b</li></ul></li><li>c</li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
    ("---", "<hr>"),
    ("<b>a</b> & <script>b()</script>", "<p>&lt;b&gt;a&lt;/b&gt; &amp; &lt;script&gt;b()&lt;/script&gt;</p>"),
    ("![a cat](http://example.com/cat.png)", "<p><span>a cat</span></p>"),
    ("[a](javascript:alert(1)) [b](data:text/html,x)", "<p><span>a</span> <span>b</span></p>"),
    ("an [open] bracket (and) one", "<p>an [open] bracket (and) one</p>"),
]


@pytest.mark.parametrize(("text", "html"), EXAMPLES)
def test_what_it_means(blank: Page, text: str, html: str) -> None:
    assert blank.evaluate(RENDER, text)["html"] == html


def test_code_tables_and_links(blank: Page) -> None:
    code = blank.evaluate(RENDER, "```python\nif a < b:\n\n    **c**\n```\nafter")
    assert "<code>if a &lt; b:\n\n    **c**</code>" in code["html"]
    assert code["html"].endswith("<p>after</p>")
    table = blank.evaluate(RENDER, "| a | b |\n|---|:-:|\n| 1 | **2** |\n\nafter")
    assert '<th scope="col">b</th>' in table["html"]
    assert "<td><strong>2</strong></td>" in table["html"]
    links = blank.evaluate(RENDER, "[a](https://a.test/x_(y)) <http://b.test> https://c.test/d.")
    assert [protocol for protocol, _ in links["links"]] == ["https:", "http:", "https:"]
    assert 'href="https://a.test/x_(y)"' in links["html"]
    assert links["text"].endswith("https://c.test/d.")


MARKS = ["*", "**", "_", "`", "```", "~~", "[", "](", ")", "!", "<", ">", "|", "|---|---|", "#", "\\"]
SPACES = ["- ", "1. ", "\n", "\n\n", "  ", "\u202e", "\0", "a", "ü"]
DANGERS = ["http://", "https://a.test", "javascript:", "data:", "<img src=x onerror=alert(1)>", "<script>"]
PIECES = st.sampled_from([*MARKS, *SPACES, *DANGERS])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=40).map("".join))
def test_nothing_in_it_can_act(blank: Page, text: str) -> None:
    rendered = blank.evaluate(RENDER, text)
    assert set(rendered["tags"]) <= TAGS
    assert set(rendered["attributes"]) <= ATTRIBUTES
    assert all(protocol in ("http:", "https:") and "noopener" in rel for protocol, rel in rendered["links"])


@pytest.mark.parametrize(
    "piece",
    ["*a ", "**", "_a", "[", "](", "![", "<", "<http://", "`", "~~a", "> ", "- ", "| |\n|-|\n", "http://a."],
)
def test_long_texts_that_mean_nothing_take_no_time(blank: Page, piece: str) -> None:
    assert blank.evaluate(RENDER, piece * 20_000)["ms"] < 10_000


def test_an_answer_with_html_in_it_is_shown_as_text(open_page: OpenPage) -> None:
    html = "<img src=x onerror=document.title=1>"
    chunk = {"choices": [{"index": 0, "delta": {"content": html}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page = open_page()
    # No model is asked: a picture with this written in it may make one write it.
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    ask(page, "What is written there?")
    expect_answers(page, [html])
    assert page.locator(".answer img").count() == 0
    assert page.title() == "acestep-gguf"
