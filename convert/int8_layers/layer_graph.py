"""One layer of a Llama, Qwen2 or Qwen3 as an ONNX graph, without torch; its weights are inputs.

Products are int8 by int8. DynamicQuantizeMatMul quantizes its whole input with one step, so each row is first
divided by its largest magnitude, and the product's row multiplied by it: without that, a few large tokens
leave nothing of the others (KL divergence 0.5 instead of 0.03 on SmolLM2).
"""

from typing import Final

import numpy as np

from acestep_gguf.bundle.prefill_info import (
    COS_CACHE,
    HIDDEN_STATES,
    KEY,
    OUTPUT,
    PAST_KEY,
    PAST_VALUE,
    SEQLENS_K,
    SIN_CACHE,
    TOTAL_SEQUENCE_LENGTH,
    VALUE,
)
from acestep_gguf.convert.checkpoint.config import TextConfig
from acestep_gguf.convert.onnx_graph import MICROSOFT, DType, OnnxGraph

LEAST_MAGNITUDE: Final = np.float32(1e-30)  # of a row: no division by zero


class LayerGraph:
    """The graph, node by node.

    Hidden states are float32 [1, n, n_embd]; past keys and values [1, n_head_kv, n_past, n_embd_head], and
    those that come out hold them, too.

    Args:
        config: the decoder's.
        has_bias: queries, keys and values have one.
        has_qk_norm: each head of queries and keys is normalized before it is rotated.
    """

    def __init__(self, config: TextConfig, *, has_bias: bool, has_qk_norm: bool) -> None:
        self._config = config
        self._graph = OnnxGraph()
        self._last = self._graph.constant("last_axis", [-1])
        self._least = self._graph.constant("least_magnitude", LEAST_MAGNITUDE)
        self.weights: dict[str, tuple[tuple[int, ...], DType]] = {}
        self._attention(has_bias=has_bias, has_qk_norm=has_qk_norm)
        self._mlp()

    def to_bytes(self) -> bytes:
        """The ONNX file."""
        config = self._config
        past = (1, config.n_key_value_heads, "n_past", config.head_size)
        present = (1, config.n_key_value_heads, "n_total", config.head_size)
        table = ("n_positions", config.head_size // 2)
        states: dict[str, tuple[str | int, ...]] = {
            HIDDEN_STATES: (1, "n", config.hidden_size),
            PAST_KEY: past,
            PAST_VALUE: past,
            SEQLENS_K: (1,),
            TOTAL_SEQUENCE_LENGTH: (),
            COS_CACHE: table,
            SIN_CACHE: table,
        }
        counts: dict[str, DType] = dict.fromkeys((SEQLENS_K, TOTAL_SEQUENCE_LENGTH), np.int32)
        model = self._graph.to_model(
            name="layer",
            inputs=states | {name: shape for name, (shape, _) in self.weights.items()},
            outputs={OUTPUT: (1, "n", config.hidden_size), KEY: present, VALUE: present},
            dtypes=counts | {name: dtype for name, (_, dtype) in self.weights.items()},
        )
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _attention(self, *, has_bias: bool, has_qk_norm: bool) -> None:
        config, graph = self._config, self._graph
        x, largest = self._scaled(self._norm(HIDDEN_STATES, "attn_norm"), "attn_norm")
        n_out = config.query_size + 2 * config.key_value_size
        qkv = graph.node("Mul", [self._product(x, "attn_qkv", config.hidden_size, n_out), largest], "qkv")
        if has_bias:
            qkv = graph.node("Add", [qkv, self._weight("attn_qkv.bias", (n_out,))], "qkv_biased")
        attention = graph.node(
            "GroupQueryAttention",
            [
                *(self._normed_heads(qkv) if has_qk_norm else (qkv, "", "")),
                *(PAST_KEY, PAST_VALUE, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, COS_CACHE, SIN_CACHE),
            ],
            "attention",
            domain=MICROSOFT,
            also=(KEY, VALUE),
            num_heads=config.num_attention_heads,
            kv_num_heads=config.n_key_value_heads,
            do_rotary=1,
            rotary_interleaved=int(config.family.pairs_neighbours),
        )
        x, largest = self._scaled(attention, "attention")
        product = self._product(x, "attn_output", config.query_size, config.hidden_size)
        graph.node("Add", [HIDDEN_STATES, graph.node("Mul", [product, largest], "attn_out")], "residual")

    def _normed_heads(self, qkv: str) -> tuple[str, str, str]:
        """Queries, keys and values, of which the first two are normalized head by head."""
        config, graph = self._config, self._graph
        sizes = graph.constant("qkv_sizes", [config.query_size, config.key_value_size, config.key_value_size])
        graph.node("Split", [qkv, sizes], "q", also=("k", "v"), axis=-1)
        heads = graph.constant("heads", [0, 0, -1, config.head_size])
        rows = graph.constant("rows", [0, 0, -1])
        normed = []
        for name in ("q", "k"):
            split = graph.node("Reshape", [name, heads], f"{name}_heads")
            joined = graph.node("Reshape", [self._norm(split, f"attn_{name}_norm"), rows], f"{name}_normed")
            normed.append(joined)
        return normed[0], normed[1], "v"

    def _mlp(self) -> None:
        config, graph = self._config, self._graph
        x, largest = self._scaled(self._norm("residual", "ffn_norm"), "ffn_norm")
        sizes = config.hidden_size, config.intermediate_size
        gate = graph.node("Mul", [self._product(x, "ffn_gate", *sizes), largest], "gate")
        gate = graph.node("QuickGelu", [gate], "silu", domain=MICROSOFT, alpha=1.0)
        # The row of `up` is not multiplied yet: that can wait for the end, where there are fewer columns.
        up = self._product(x, "ffn_up", *sizes)
        x, largest_activation = self._scaled(graph.node("Mul", [gate, up], "gated"), "gated")
        down = self._product(x, "ffn_down", *reversed(sizes))
        largest = graph.node("Mul", [largest_activation, largest], "down_largest")
        graph.node("Add", ["residual", graph.node("Mul", [down, largest], "down")], OUTPUT)

    def _norm(self, x: str, name: str) -> str:
        config = self._config
        width = config.head_size if name.endswith(("q_norm", "k_norm")) else config.hidden_size
        return self._graph.node(
            "SimplifiedLayerNormalization",
            [x, self._weight(f"{name}.weight", (width,))],
            name,
            axis=-1,
            epsilon=config.rms_norm_eps,
        )

    def _scaled(self, x: str, name: str) -> tuple[str, str]:
        """``x`` with rows whose largest magnitude is 1, and what it was."""
        graph = self._graph
        high = graph.node("ReduceMax", [x, self._last], f"{name}.high")
        low = graph.node("Neg", [graph.node("ReduceMin", [x, self._last], f"{name}.low")], f"{name}.negative")
        largest = graph.node("Max", [high, low, self._least], f"{name}.largest")
        return graph.node("Div", [x, largest], f"{name}.scaled"), largest

    def _product(self, x: str, name: str, n_in: int, n_out: int) -> str:
        weight = self._weight(f"{name}.weight", (n_in, n_out), np.int8)
        scale = self._weight(f"{name}.scale", (n_out,))
        return self._graph.node("DynamicQuantizeMatMul", [x, weight, scale], name, domain=MICROSOFT)

    def _weight(self, name: str, shape: tuple[int, ...], dtype: DType = np.float32) -> str:
        self.weights[name] = shape, dtype
        return name
