"""The CPU's scratch memory, which llama.cpp does not log: ggml_graph_plan in ggml/src/ggml-cpu/ggml-cpu.c."""

from typing import Final

from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, TensorInfo
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.plan.decoder_memory import DecoderShape, DecoderWeights

# Type of the weights -> type that the other factor is quantized to (vec_dot_type); F32 needs no copy.
FACTOR_TYPES: Final = {"F16": 1, "BF16": 30, "Q8_0": 8, "Q4_0": 8, "Q5_0": 8, "IQ4_NL": 8, "MXFP4": 8}
Q8_1: Final = {"Q4_1", "Q5_1"}
K_QUANT_FACTOR_BYTES: Final = (256, 292)  # block_q8_K: 256 values
Q8_1_FACTOR_BYTES: Final = (32, 36)
TILE_BYTES: Final = 512 * 2**10  # for each thread of the tiled product (TILED_WS_SLOT)
FLASH_ATTENTION_TILE: Final = 64  # GGML_FA_TILE_Q and GGML_FA_TILE_KV


def work_buffer_bytes(shape: DecoderShape, weights: DecoderWeights, params: ContextParams) -> int:
    """Bytes of the largest operation of a micro-batch on the CPU: a matrix product or flash attention."""
    n_tokens = min(params.n_ubatch, params.n_batch, params.n_ctx)
    n_threads = max(params.n_threads, params.n_threads_batch)
    products = [
        _product_bytes(tensor, n_tokens, n_threads)
        for layer in weights.layers[:-1] or weights.layers
        for tensor in layer.tensors.values()
        if len(tensor.dims) == 2
    ]
    tile, head = FLASH_ATTENTION_TILE, shape.n_embd_head
    attention = 4 * n_threads * (4 * tile * head + 2 * tile * tile)
    return max(*products, attention)


def _product_bytes(weight: TensorInfo, n_tokens: int, n_threads: int) -> int:
    n_values = weight.dims[0] * n_tokens
    if weight.type.name == "F32":
        return 0
    if weight.type.name in FACTOR_TYPES:
        factor = TENSOR_TYPES[FACTOR_TYPES[weight.type.name]]
        return n_values // factor.block_size * factor.type_size
    block, n_bytes = Q8_1_FACTOR_BYTES if weight.type.name in Q8_1 else K_QUANT_FACTOR_BYTES
    return n_values // block * n_bytes + n_threads * TILE_BYTES
