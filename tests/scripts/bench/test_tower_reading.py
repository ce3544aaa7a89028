"""What is asked of towers, how they are rounded, and how a table's cell counts."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # for its fonts

from gguf import GGUFReader
from gguf.quants import dequantize

from acestep_gguf.bundle.names import MmprojFtype
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.pipeline import convert_checkpoint
from scripts.bench.tower_reading import READINGS, Found, Rounded, asked_of, cell, together
from scripts.demo.scenes import SIDE
from tests.support.tiny_checkpoints import TinyCheckpoint


def heights(name: str, size: int) -> list[int]:
    """Rows of each picture that are not of one colour."""
    pixels = [np.asarray(one.images[0]) for one in asked_of(name, size, 20)]
    return [int((rows != rows[:, :1]).any(axis=(1, 2)).sum()) for rows in pixels]


@pytest.mark.parametrize("name", READINGS)
def test_sizes_differ_in_the_drawing_alone(name: str) -> None:
    small, large = READINGS[name].sizes[0], READINGS[name].sizes[-1]
    questions = [[one.question for one in asked_of(name, size, 20)] for size in (small, large)]
    assert questions[0] == questions[1]
    if name != "numbers on sheets":
        assert all(one.images[0].size == (SIDE, SIDE) for one in asked_of(name, small, 20))
        assert sum(heights(name, small)) / sum(heights(name, large)) == pytest.approx(small / large, rel=0.1)


@pytest.mark.parametrize("ftype", ["F16", "Q8_0"])
def test_rounded_tensors_are_those_of_the_mmproj_file(tmp_path: Path, ftype: MmprojFtype) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "c")
    bundle = convert_checkpoint(checkpoint, tmp_path / "b", ["F32"], vision=["float32"], mmproj=[ftype])
    reader = GGUFReader(tmp_path / "b" / bundle.mmproj[ftype].file)
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    same = 0
    with open_model(checkpoint, None) as model:
        for name, tensor in model.tensors.tower.items():
            if name in stored and name != "v.position_embd.weight":  # in another order there
                rounded = Rounded(tensor, name, ftype).read()
                np.testing.assert_array_equal(rounded, stored[name].reshape(rounded.shape), err_msg=name)
                same += 1
    assert same > 20


def test_a_cell_counts_what_was_lost_and_won() -> None:
    embeds = [np.eye(3, dtype=np.float32), 2 * np.eye(3, dtype=np.float32)]
    best = Found(embeds, [True, True, False, False])
    other = Found([embeds[0], -embeds[1]], [True, False, True, True])
    assert cell(best, best) == "50.0 %"
    assert cell(other, best) == "75.0 % (−1 +2; 0.00000, -1.0000)"
    both = together([best, other])
    assert len(both.embeds) == 4
    assert both.right == [*best.right, *other.right]
