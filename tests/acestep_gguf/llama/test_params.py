from typing import Any

import pytest

from acestep_gguf.errors import UsageError
from acestep_gguf.llama.params import ContextParams


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ctx": 0},
        {"n_ctx": -5},
        {"n_ctx": 2**40},
        {"n_ctx": 3.5},
        {"n_ctx": 64, "n_batch": 0},
        {"n_ctx": 64, "n_ubatch": 0},
        {"n_ctx": 64, "n_threads": 0},
        {"n_ctx": 64, "n_threads_batch": 10_000},
        {"n_ctx": 64, "n_outputs_max": 0},
        {"n_ctx": 64, "type_k": "q3_0"},
        {"n_ctx": 64, "type_k": []},
        {"n_ctx": "64"},
        {"n_ctx": 64, "flash_attn": "maybe"},
        {"n_ctx": 64, "type_v": "q8_0", "flash_attn": "off"},
    ],
)
def test_context_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=list(settings)[-1] if len(settings) < 3 else "flash attention"):
        ContextParams(**settings)
