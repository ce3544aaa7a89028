"""Decoder files of every type and shape, through the converter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.convert import convert_checkpoint
from tests.support.tiny_checkpoints import TinyCheckpoint

MakeSource = Callable[..., Path]


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """A decoder file of the type and the shape asked for; each is made once."""
    made: dict[tuple[object, ...], Path] = {}

    def make(ftype: Ftype = "F16", **options: Any) -> Path:
        key = (ftype, *options.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("source")
            checkpoint = TinyCheckpoint(**options).write(folder / "checkpoint")
            bundle = convert_checkpoint(checkpoint, folder / "bundle", [ftype], name="Tiny")
            made[key] = folder / "bundle" / bundle.decoder().file
        return made[key]

    return make
