"""Every stage next to what transformers computed when tests/parity/make_golden.py ran."""

from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.convert import convert_checkpoint
from tests.support.fidelity import TINY, assert_same, write_checkpoint
from tests.support.stages import Stages
from tests.support.token_counts import N_SIZES, PUBLISHED, TOKEN_COUNTS, our_counts, random_sizes

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["demo", *TINY])
def test_every_stage_gives_the_stored_numbers(name: str, tmp_path: Path) -> None:
    convert_checkpoint(write_checkpoint(name, tmp_path), tmp_path / "bundle", ["F32"])
    with Stages(tmp_path / "bundle") as stages, np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        assert_same(stages, name, dict(stored))


def test_pictures_have_the_stored_number_of_tokens(tmp_path: Path) -> None:
    counts = our_counts(PUBLISHED.write(tmp_path / "c"), random_sizes(N_SIZES))
    with np.load(GOLDEN / f"{TOKEN_COUNTS}.npz", allow_pickle=False) as stored:
        assert counts == stored["counts"].tolist()
