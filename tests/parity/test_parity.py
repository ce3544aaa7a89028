"""Every stage next to transformers, live, on the demo checkpoint and on tiny random ones."""

from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from tests.support.fidelity import TINY, assert_same, write_checkpoint
from tests.support.stages import Stages

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", ["demo", *TINY])
def test_every_stage_gives_the_numbers_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.parity.reference import expected_arrays

    checkpoint = write_checkpoint(name, tmp_path)
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"])
    with Stages(tmp_path / "bundle") as stages:
        assert_same(stages, name, expected_arrays(name, checkpoint))
