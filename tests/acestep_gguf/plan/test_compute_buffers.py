"""llama.cpp is the judge: what it logs for a simulated load.

The whole grid: scripts/checks/simulated_load.py.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.plan import compute_buffers
from acestep_gguf.plan.compute_buffers import compute_buffer_bytes
from acestep_gguf.plan.decoder_memory import decoder_shape, decoder_weights
from acestep_gguf.plan.placement import Placement
from scripts.checks.simulated_load import (
    Load,
    compare,
    decoder_layout,
    random_loads,
    whole_grid,
    write_sparse,
)
from scripts.synthetic.checkpoint import SHAPES, Shape
from tests.support.cards import played_card

LLAVA_1_5 = Shape(4096, 32, 32, 32, 11008, 32064, tied=False)
ONE_LAYER = Shape(128, 1, 2, 1, 256, 500, tied=False)
FEW_LAYERS = Shape(512, 6, 8, 4, 1536, 8000, tied=False)
SAMPLE = list(whole_grid())[::5]
SMALL = [
    ContextParams(n_ctx=n_ctx, n_batch=512, n_ubatch=n_ubatch, flash_attn=flash_attn)
    for n_ctx in (100, 4096)
    for n_ubatch in (1, 32, 500)
    for flash_attn in ("auto", "off")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "ftype", "architecture", "contexts"),
    [
        (SHAPES["0.5b"], "Q4_K_M", "qwen2", SAMPLE),
        (SHAPES["32b"], "Q5_K_M", "qwen2", SAMPLE[::3]),
        (SHAPES["1.5b"], "Q8_0", "qwen2", SAMPLE[1::6]),
        (LLAVA_1_5, "Q4_K_M", "llama", SAMPLE[2::6]),
        (SHAPES["0.5b"], "Q4_K_M", "qwen3", SAMPLE[2::6]),
        (SHAPES["32b"], "Q8_0", "qwen3", SAMPLE[4::9]),
        (SHAPES["tiny"], "F16", "qwen2", SMALL),
        (ONE_LAYER, "F32", "qwen2", SMALL),
        (ONE_LAYER, "F32", "qwen3", SMALL),
    ],
)
def test_sizes_are_those_that_llama_cpp_logs(
    shape: Shape, ftype: Ftype, architecture: str, contexts: list[ContextParams]
) -> None:
    errors = compare(shape, ftype, [Load(context) for context in contexts], architecture)
    assert errors.n_contexts == len(contexts)
    assert errors.weights == 0
    assert errors.kv == 0
    assert errors.output == 0
    assert errors.compute_under == errors.compute_over == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "ftype", "architecture", "count"),
    [
        (FEW_LAYERS, "Q4_K_M", "qwen2", 30),
        (FEW_LAYERS, "Q8_0", "qwen3", 30),
        (replace(FEW_LAYERS, tied=True), "F16", "llama", 20),
    ],
)
def test_sizes_on_a_gpu_are_those_that_llama_cpp_logs(
    shape: Shape, ftype: Ftype, architecture: str, count: int
) -> None:
    with played_card(2**40) as card:
        errors = compare(shape, ftype, list(random_loads(shape.layers, count, 1)), architecture, card)
    assert errors.n_contexts == count
    assert errors.kv == errors.output == 0
    assert errors.compute_under == errors.compute_over == 0


@settings(max_examples=12, deadline=None)
@given(
    n_gpu_layers=st.integers(0, 25),
    n_attention_only=st.integers(0, 3),
    kv_on_gpu=st.booleans(),
    n_ubatch=st.sampled_from([16, 64, 512]),
)
def test_a_few_layers_stand_for_all(
    n_gpu_layers: int,
    n_attention_only: int,
    kv_on_gpu: bool,
    n_ubatch: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "sparse-0.5b.gguf"
    if not path.exists():
        write_sparse(path, decoder_layout(SHAPES["0.5b"], "Q4_K_M"))
    header = read_gguf_header(path)
    shape, weights = decoder_shape(header), decoder_weights(header)
    placement = Placement.of(24, n_gpu_layers, n_attention_only=n_attention_only, kv_on_gpu=kv_on_gpu)
    params = ContextParams(n_ctx=4096, n_ubatch=n_ubatch)
    few = compute_buffer_bytes(shape, weights, params, placement)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute_buffers, "MOST_ALIKE", 1000)
        assert compute_buffer_bytes(shape, weights, params, placement) == few


def test_a_gpu_gets_the_large_tensors_and_ram_keeps_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "decoder.gguf"
    write_sparse(path, decoder_layout(SHAPES["7b"], "Q4_K_M"))
    header = read_gguf_header(path)
    shape, weights = decoder_shape(header), decoder_weights(header)
    params = ContextParams(n_ctx=8192)
    (in_ram,) = compute_buffer_bytes(shape, weights, params)
    ram, gpu = compute_buffer_bytes(shape, weights, params, Placement.of(28, 29))
    inputs = 4 * 512 * shape.n_embd + 2 * 512 * 8192
    assert inputs < ram < 2 * inputs < in_ram
    # The MLP's three tensors and a copy of the mask are there, the input of image embeds is not.
    assert 3 * 4 * 512 * shape.n_ff + 2 * 512 * 8192 < gpu < in_ram - 4 * 512 * shape.n_embd
    _, with_weights = compute_buffer_bytes(shape, weights, params, Placement.of(28, 20))
    assert with_weights > gpu + weights.layers[0].tensors["ffn_gate.weight"].nbytes / 2
