from collections.abc import Iterator

import pytest

from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams


@pytest.fixture
def context(weights: Model) -> Iterator[Context]:
    params = ContextParams(n_ctx=64, n_batch=16, n_ubatch=8, n_outputs_max=16)
    with Context(weights, params) as opened:
        yield opened
