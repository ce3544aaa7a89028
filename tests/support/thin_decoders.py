"""Decoders with all layers and rows of true length, but few rows: enough to see each tensor's type."""

from pathlib import Path

import gguf
import numpy as np

N_TOKENS = 4
NORMS = ("attn_norm", "ffn_norm")
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_thin_decoder(
    path: Path,
    *,
    arch: str = "qwen2",
    n_layers: int = 16,
    n_sharing: int = 2,
    n_embd: int = 256,
    n_ff: int = 256,
    tied: bool = False,
) -> Path:
    """An F32 decoder, of which llama-quantize can make everything, and llama.cpp can load nothing.

    ``n_sharing`` heads of queries share each head of keys and values.
    """
    rng = np.random.default_rng(n_layers * n_embd + n_sharing)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_sharing)
    writer.add_head_count_kv(1)
    writer.add_key_length(2)
    writer.add_value_length(2)
    writer.add_rope_dimension_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list([f"token {token}" for token in range(N_TOKENS)])

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))

    add("token_embd", N_TOKENS, n_embd)
    add("output_norm", n_embd)
    if not tied:
        add("output", N_TOKENS, n_embd)
    for layer in range(n_layers):
        for norm in NORMS:
            add(f"blk.{layer}.{norm}", n_embd)
        for role in ROLES:
            n_rows = 2 * n_sharing if role == "attn_q" else 2
            add(f"blk.{layer}.{role}", n_rows, n_ff if role == "ffn_down" else n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
