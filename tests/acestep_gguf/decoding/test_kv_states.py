from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.decoding.kv_states import KVStates, decoder_facts
from acestep_gguf.llama.params import ContextParams, ModelParams
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.storage.disk_cache import DiskCache

SEGMENTS: st.SearchStrategy[Segment] = st.one_of(
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.builds(ImageInput, st.sampled_from([b"a", b"aa", b""]), st.integers(0, 3)),
)


def name(prompt: Sequence[Segment], made_by: Any = "x") -> str:
    return KVStates(DiskCache(Path("nowhere")), made_by).name(prompt)


@given(
    st.lists(SEGMENTS, max_size=4), st.lists(SEGMENTS, max_size=4), st.text(max_size=2), st.text(max_size=2)
)
def test_different_prompts_and_makers_have_different_names(
    one: list[Segment], other: list[Segment], maker: str, other_maker: str
) -> None:
    assert (name(one, maker) == name(other, other_maker)) == (one == other and maker == other_maker)


def test_names_are_the_same_in_every_process() -> None:
    prompt: list[Segment] = [(1, 2, 3), ImageInput(b"a" * 36, 4), (5,)]
    facts = {"b": 1, "a": {"d": None, "c": "f16"}}
    assert name(prompt, facts) == name(prompt, dict(reversed(facts.items())))
    assert name(prompt, facts) == "state-17ed4801762a09f79dfbfe3001f34028b7973e4e76d88b2028956181f2579a87"


@pytest.mark.parametrize(
    "settings", [{"n_ubatch": 8}, {"n_threads": 2}, {"type_v": "f32"}, {"flash_attn": "on"}, {"n_batch": 64}]
)
def test_settings_that_change_the_numbers(tiny_bundle: Path, settings: dict[str, Any]) -> None:
    path = tiny_bundle / Bundle.read(tiny_bundle).decoder().file
    facts = decoder_facts(path, ModelParams(), ContextParams(n_ctx=100))
    assert decoder_facts(path, ModelParams(), ContextParams(n_ctx=100, **settings)) != facts
    assert decoder_facts(path, ModelParams(n_gpu_layers=1), ContextParams(n_ctx=100)) != facts
    loading, params = ModelParams(use_mmap=False), ContextParams(n_ctx=200, n_outputs_max=9)
    assert decoder_facts(path, loading, params) == facts
