"""A trained LLaVA-NeXT reads the numbers of sheets from their tiles, quantized or not, and not without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf import AceStep
from acestep_gguf.convert import convert_checkpoint

SHEETS = Path(__file__).parent / "checkpoints" / "sheets"
QUESTIONS = json.loads((SHEETS / "questions.json").read_text())
Right = Callable[..., float]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Right:
    """The share of the questions that a bundle of the checkpoint answers rightly, letter by letter."""
    bundle = tmp_path_factory.mktemp("sheets") / "bundle"
    convert_checkpoint(SHEETS, bundle, ["F16", "Q4_K_M"])

    def ask(quant: str, vision: str, max_tiles: int | None = None) -> float:
        with AceStep(
            bundle, quant=quant, vision=vision, max_tiles=max_tiles, n_threads=1, cache=False
        ) as model:
            answers = [model.generate(one["question"], [SHEETS / one["image"]]).text for one in QUESTIONS]
        wanted = [one["answer"] for one in QUESTIONS]
        return sum(map(str.__eq__, answers, wanted)) / len(wanted)

    return ask


def test_there_is_a_sheet_of_each_shape_and_they_are_padded() -> None:
    sizes = {Image.open(SHEETS / one["image"]).size for one in QUESTIONS}
    assert len(sizes) == 5
    assert len([size for size in sizes if max(size) % min(size)]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "vision"), [("F16", "float32"), ("F16", "int8"), ("Q4_K_M", "float32"), ("Q4_K_M", "int8")]
)
def test_numbers_are_read_from_tiles(right: Right, quant: str, vision: str) -> None:
    assert right(quant, vision) >= 0.8


@pytest.mark.slow
def test_they_cannot_be_read_from_the_whole_sheet_alone(right: Right) -> None:
    assert right("F16", "float32", max_tiles=1) <= 0.1
