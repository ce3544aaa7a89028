"""Every stage next to what transformers computed when tests/parity/make_golden.py ran."""

from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.convert import convert_checkpoint
from tests.support.fidelity import TINY, assert_same, write_checkpoint
from tests.support.stages import Stages

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["demo", *TINY])
def test_every_stage_gives_the_stored_numbers(name: str, tmp_path: Path) -> None:
    convert_checkpoint(write_checkpoint(name, tmp_path), tmp_path / "bundle", ["F32"])
    with Stages(tmp_path / "bundle") as stages, np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        assert_same(stages, name, dict(stored))
