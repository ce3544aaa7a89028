from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.errors import UsageError
from acestep_gguf.options import AnswerOptions, EngineOptions, changed


@pytest.mark.parametrize(
    "options",
    [
        {"spec_type": "ngram"},
        {"draft": "bundle", "draft_max": 0},
        {"draft_max": 65},
        {"spec_type": "ngram-simple", "draft": Path("bundle")},
        {"quant": 5},
        {"vision": 8},
        {"cache": 5},
        {"image_tokens": 0},
        {"image_tokens": "all"},
        {"image_tokens": True},
        {"use_mmap": "yes"},
        {"allow_paging": "no"},
        {"use_mlock": []},
    ],
)
def test_engine_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 1.5),
        ("min_p", float("inf")),
        ("repeat_penalty", 0.0),
        ("seed", -2),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", 2**32 - 1),
        ("max_tokens", 0),
        ("max_tokens", -2),
        ("stop", "end"),
        ("stop", [1]),
        ("grammar", 5),
        ("stop", ["end", ""]),
    ],
)
def test_answer_options_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        AnswerOptions(**{name: value})


def test_changes_are_checked_as_options_are() -> None:
    assert changed(EngineOptions(n_ctx=64), {"n_batch": 8}) == EngineOptions(n_ctx=64, n_batch=8)
    with pytest.raises(UsageError, match="no option n_context"):
        changed(EngineOptions(), {"n_context": 64})
    with pytest.raises(UsageError, match="max_tokens"):
        changed(AnswerOptions(), {"max_tokens": 0})
