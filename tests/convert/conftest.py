"""Bundles and checkpoints that several tests look at."""

from pathlib import Path

import pytest

from tests.support.tiny_checkpoints import TinyCheckpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny checkpoint in the layout of transformers 4, for tests that spoil it."""
    return TinyCheckpoint().write(tmp_path / "checkpoint")
