"""Every command in the documentation is run, and prints what the documentation says.

A ``sh`` or ``python`` block is run in a copy of the repository; a ``text`` block after it is what it prints.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import acestep_gguf

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    expected: str | None


def examples(page: str) -> list[Example]:
    blocks = BLOCK.findall((ROOT / page).read_text())
    found = []
    for i, (language, code) in enumerate(blocks):
        if language in {"sh", "python"}:
            follows = i + 1 < len(blocks) and blocks[i + 1][0] == "text"
            found.append(Example(language, code, blocks[i + 1][1] if follows else None))
    return found


def command(example: Example) -> list[str]:
    if example.language == "python":
        return [sys.executable, "-c", example.code]
    return ["bash", "-euo", "pipefail", "-c", example.code]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_the_examples_of_a_page_run_and_print_what_it_says(page: str, tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if entry.name not in {".git", "build", "dist", "runs"}:
            (tmp_path / entry.name).symlink_to(entry)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    for example in examples(page):
        done = subprocess.run(
            command(example), cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{example.code}\n{done.stdout}\n{done.stderr}"
        if example.expected is not None:
            assert done.stdout.strip() == example.expected.strip(), example.code


def test_the_documentation_links_to_files_that_exist() -> None:
    others = [path.name for path in ROOT.glob("*.md")]
    for page in {*PAGES, *others, "acestep_gguf/demo/README.md"}:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_public_name_is_on_its_page() -> None:
    page = (ROOT / "docs/api.md").read_text()
    shown = re.findall(r"^\.\. auto\w+:: acestep_gguf\.(\w+)$", page, re.MULTILINE)
    assert {*shown, "AceStepError"} == {*acestep_gguf.__all__, "errors"}
