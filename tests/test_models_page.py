"""Each row of docs/models.md has a test."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
LINK = re.compile(r"\[([^]]+)\]\(([^)]+)\)")


def rows() -> list[str]:
    """Rows of all tables, without their heads."""
    lines = PAGE.read_text().splitlines()
    heads = {index - 1 for index, line in enumerate(lines) if line.startswith("|---")}
    return [
        line
        for index, line in enumerate(lines)
        if line.startswith("| ") and index not in heads and not line.startswith("|---")
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_row_names_tests_that_are_there(row: str) -> None:
    links = LINK.findall(row.split("|")[-2])
    assert links
    for name, target in links:
        path = (PAGE.parent / target).resolve()
        text = path.read_text()
        assert name == path.name or f"def {name}(" in text or f'"{name}": ' in text, name
