"""The decoder's layers in float32 with numpy: what its int8 layers and llama.cpp are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from acestep_gguf.convert.model import open_model
from acestep_gguf.prefill.rotation import Rotation

FloatArray = npt.NDArray[np.float32]


def keys_and_values(
    checkpoint: Path, rotation: Rotation, hidden: FloatArray
) -> list[tuple[FloatArray, FloatArray]]:
    """Keys and values of each layer, float32 [1, n_head_kv, n, head_size], of ``hidden`` [n, n_embd]."""
    with open_model(checkpoint, None) as model:
        config = model.config.text_config
        weights = {name: tensor.read() for name, tensor in model.tensors.decoder.items()}
    size, n = config.head_size, len(hidden)
    cos, sin = (table[:, np.newaxis] for table in rotation.tables(n))

    def norm(x: FloatArray, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

    def linear(x: FloatArray, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", np.float32(0))

    def heads(x: FloatArray, name: str) -> Any:
        split = linear(x, name).reshape(n, -1, size)
        return norm(split, f"{name}_norm") if f"{name}_norm.weight" in weights else split

    def rotated(x: FloatArray) -> Any:
        pairs = (slice(0, None, 2), slice(1, None, 2))
        if not config.family.pairs_neighbours:
            pairs = (slice(0, size // 2), slice(size // 2, None))
        first, second = (x[..., pair] for pair in pairs)
        turned = np.empty_like(x)
        turned[..., pairs[0]] = first * cos - second * sin
        turned[..., pairs[1]] = second * cos + first * sin
        return turned

    found = []
    n_shared = config.num_attention_heads // config.n_key_value_heads
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    for bid in range(config.num_hidden_layers):
        block = f"blk.{bid}."
        x = norm(hidden, f"{block}attn_norm")
        queries, keys = (rotated(heads(x, f"{block}attn_{side}")) for side in ("q", "k"))
        values = heads(x, f"{block}attn_v")
        found.append(tuple(side.transpose(1, 0, 2)[np.newaxis] for side in (keys, values)))
        scores = np.einsum("shd,thd->hst", queries, keys.repeat(n_shared, 1)) / np.float32(size**0.5) + mask
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        seen = np.einsum("hst,thd->shd", shares, values.repeat(n_shared, 1)).reshape(n, -1)
        hidden = hidden + linear(seen, f"{block}attn_output")
        x = norm(hidden, f"{block}ffn_norm")
        gate = linear(x, f"{block}ffn_gate")
        hidden = hidden + linear(gate / (1 + np.exp(-gate)) * linear(x, f"{block}ffn_up"), f"{block}ffn_down")
    return found
