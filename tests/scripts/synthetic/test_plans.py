"""The tables of docs/models.md of what fits which machine."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from scripts.synthetic.bundle import write_checkpoint
from scripts.synthetic.checkpoint import SHAPES, VISION_SHAPES
from scripts.synthetic.plans import comparison, row
from tests.convert import test_published_pixtral
from tests.convert.test_published_folders import NEXT_MISTRAL, NEXT_VICUNA, ONEVISION, write_folder
from tests.convert.test_published_idefics2 import NAME as IDEFICS2
from tests.convert.test_published_idefics2 import write_folder as write_idefics2
from tests.convert.test_published_smolvlm import BOARD
from tests.convert.test_published_smolvlm import write_folder as write_smolvlm

PAGE = Path(__file__).parents[3] / "docs/models.md"


def write_described(folder: Path) -> None:
    folder.mkdir()
    write_checkpoint(folder, SHAPES["32b"], VISION_SHAPES["vit-h-14-448"])


# By the names of the page's second table.
COMPARED: dict[str, Callable[[Path], object]] = {
    "described": write_described,
    NEXT_VICUNA: partial(write_folder, name=NEXT_VICUNA),
    NEXT_MISTRAL: partial(write_folder, name=NEXT_MISTRAL),
    IDEFICS2: write_idefics2,
    "pixtral-12b": test_published_pixtral.write_folder,
}


def shown(name: str) -> Iterator[list[str]]:
    """The rows of the page's tables that begin with ``name``."""
    return (cells(line) for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [NEXT_VICUNA, ONEVISION, BOARD, IDEFICS2])
def test_a_row_of_the_page(name: str, tmp_path: Path) -> None:
    write = {BOARD: write_smolvlm, IDEFICS2: write_idefics2}.get(name, write_folder)
    found = cells(row(write(tmp_path / name, name)))
    page, *_ = shown(name)
    # What a CPU repacks differs; the context does not.
    contexts = [[cell.partition(",")[0] for cell in line[3:6]] for line in (found, page)]
    assert contexts[0] == contexts[1]
    assert found[1:3] == page[1:3]
    assert found[0] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_a_row_of_the_comparison(name: str, tmp_path: Path) -> None:
    COMPARED[name](tmp_path / name)
    found = cells(comparison(tmp_path / name))
    *_, page = shown(name)
    assert found[1:4] == page[1:4]
    on_cpus = [[cell.partition(",")[0] for cell in line[4:7]] for line in (found, page)]
    assert on_cpus[0] == on_cpus[1]
    layers, contexts = zip(*(line[7].split(", ")[:2] for line in (found, page)), strict=True)
    assert contexts[0] == contexts[1]
    # CPUs repack more or less of what is left in RAM, so another number of layers may be on the card.
    assert layers[0] == layers[1] or "(all)" not in page[7]
