"""What the page's files may not have, read rather than run."""

import re
from pathlib import Path

import pytest

import acestep_gguf

PAGE = Path(acestep_gguf.__file__).parent / "server" / "page"
FILES = sorted(PAGE.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_parses_html_runs_text_or_is_loaded_from_elsewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|Function\(", text
    )
    assert not re.search(r"""(?:src|href|from|import|url)\s*[=(]?\s*["']?https?:""", text)
    assert len(text.splitlines()) < 400


def test_the_markup_has_neither_scripts_nor_styles_in_it() -> None:
    markup = (PAGE / "index.html").read_text("utf-8")
    assert re.findall(r"<script\b([^>]*)>(.*?)</script>", markup, re.DOTALL) == [
        (' src="theme.js"', ""),
        (' type="module" src="main.js"', ""),
    ]
    assert not re.search(r"<style|\sstyle=|\son\w+=", markup)


def test_every_file_is_used_and_every_name_exists() -> None:
    sources = {path.name: path.read_text("utf-8") for path in FILES}
    named = {
        name
        for text in sources.values()
        for name in re.findall(r'["(](?:\./)?([\w-]+\.(?:js|css|svg))[")]', text)
    }
    assert named | {"index.html"} == sources.keys()
    ids = set(re.findall(r'\bid="([\w-]+)"', sources["index.html"]))
    asked = {name for text in sources.values() for name in re.findall(r'byId\("([\w-]+)"\)', text)}
    assert asked <= ids
    icons = {name for text in sources.values() for name in re.findall(r'icon\("([\w-]+)"\)', text)}
    icons |= set(re.findall(r'href="#icon-(\w+)"', sources["index.html"]))
    assert {f"icon-{name}" for name in icons} == {name for name in ids if name.startswith("icon-")}
