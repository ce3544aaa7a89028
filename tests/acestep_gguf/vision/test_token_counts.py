"""Tokens of pictures, as transformers' processors counted them when tests/parity/make_golden.py ran."""

import json
from pathlib import Path

import pytest

from tests.support.published_tiles import CHECKPOINTS, image_spec, picture_sizes, token_counts

GOLDEN = Path(__file__).parents[2] / "golden" / "token_counts.json"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_tokens_are_those_that_transformers_counts(name: str, tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text())[name]
    spec = image_spec(CHECKPOINTS[name].write(tmp_path / name))
    assert token_counts(spec, picture_sizes(len(stored))) == stored
