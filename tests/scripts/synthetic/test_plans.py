"""The table of docs/models.md of what fits which machine."""

from pathlib import Path

import pytest

from scripts.synthetic.plans import row
from tests.convert.test_published_folders import NEXT_VICUNA, ONEVISION, write_folder
from tests.convert.test_published_idefics2 import NAME as IDEFICS2
from tests.convert.test_published_idefics2 import write_folder as write_idefics2
from tests.convert.test_published_smolvlm import BOARD
from tests.convert.test_published_smolvlm import write_folder as write_smolvlm

PAGE = Path(__file__).parents[3] / "docs/models.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [NEXT_VICUNA, ONEVISION, BOARD, IDEFICS2])
def test_a_row_of_the_page(name: str, tmp_path: Path) -> None:
    write = {BOARD: write_smolvlm, IDEFICS2: write_idefics2}.get(name, write_folder)
    found = cells(row(write(tmp_path / name, name)))
    (shown,) = (cells(line) for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    # What a CPU repacks differs; the context does not.
    contexts = [[cell.partition(",")[0] for cell in line[3:6]] for line in (found, shown)]
    assert contexts[0] == contexts[1]
    assert found[1:3] == shown[1:3]
    assert found[0] == name
