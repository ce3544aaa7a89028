"""The search keeps what it promises, on a trained model and on pictures that it did not see."""

from pathlib import Path

import pytest

from acestep_gguf.quantize.mixture import MixtureRequest
from scripts.bench.mixture import SIZE, compare


@pytest.mark.slow
def test_a_mixture_loses_less_on_pictures_that_were_not_searched_on(tmp_path: Path) -> None:
    request = MixtureRequest(size=SIZE, layers_together=2, swaps=0, threads=1)
    found = compare(tmp_path, 8, 100, request)
    assert found.mixture[1].n_bytes <= found.plain[1].n_bytes
    assert found.gain >= max(0.15, found.gain_at_least())
