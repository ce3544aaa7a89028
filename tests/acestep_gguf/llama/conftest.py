from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from tests.support.tiny_checkpoints import TinyCheckpoint


@pytest.fixture
def context(weights: Model) -> Iterator[Context]:
    params = ContextParams(n_ctx=64, n_batch=16, n_ubatch=8, n_outputs_max=16)
    with Context(weights, params) as opened:
        yield opened


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose decoder has as many values in a row as a K-quant's block has."""
    folder = tmp_path_factory.mktemp("card")
    checkpoint = TinyCheckpoint(n_layers=4).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ("F16", "Q4_K_M"))
    return folder / "bundle"
