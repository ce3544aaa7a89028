"""llama.cpp's compute and output buffers, from a decoder's header.

The graph is that of Llama, Qwen2 and Qwen3 (llama.cpp, qwen2.cpp and qwen3.cpp in src/models, build_attn_mha
in src/llama-graph.cpp): of one micro-batch over a full context, as llama.cpp reserves it. Judged by its own
log in tests/acestep_gguf/plan/test_compute_buffers.py, for GPUs on one that a process plays.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

from acestep_gguf.bundle.gguf_header import TensorInfo
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.options import CacheType
from acestep_gguf.plan.decoder_memory import (
    DecoderShape,
    DecoderWeights,
    padded_n_ctx,
    row_bytes,
)
from acestep_gguf.plan.graph_allocator import ANYWHERE, Tensor, buffer_sizes
from acestep_gguf.plan.placement import RAM, Placement

F32: Final = 4
I32: Final = 4
I64: Final = 8
FLOAT_CACHES: Final = ("f32", "f16", "bf16")
# Rows from which a GPU computes with weights that lie in RAM, after copying them (CUDA's offload_op).
OFFLOAD_ROWS: Final = 32
MOST_ALIKE: Final = 2
ROTATION: Final = 64  # side of the smallest rotation matrix of a quantized cache


def compute_buffer_bytes(
    shape: DecoderShape, weights: DecoderWeights, params: ContextParams, placement: Placement | None = None
) -> list[int]:
    """Bytes of the compute buffer on each device: [RAM, first GPU, …]."""
    placement = placement or Placement.in_ram(shape.n_layer)
    graph = _Graph(shape, weights, params, placement)
    graph.build()
    return buffer_sizes(graph.inputs, graph.nodes, placement.n_gpus + 1)


def output_buffer_bytes(shape: DecoderShape, params: ContextParams) -> int:
    """Logits of the outputs that one call may have; llama.cpp makes room for one at first, then for all."""
    return F32 * shape.n_vocab * min(params.n_outputs_max, params.n_batch)


@dataclass
class _Graph:
    """The nodes in the order in which llama.cpp computes them."""

    shape: DecoderShape
    weights: DecoderWeights
    params: ContextParams
    placement: Placement
    inputs: list[Tensor] = field(default_factory=list)
    nodes: list[Tensor] = field(default_factory=list)

    def build(self) -> None:
        shape, params = self.shape, self.params
        self.flash_attn = params.flash_attn != "off"
        self.n_ctx = padded_n_ctx(params.n_ctx)
        self.n_tokens = n_tokens = min(params.n_ubatch, params.n_batch, params.n_ctx)
        self.n_outputs = min(n_tokens, params.n_outputs_max)
        # llama.cpp ties norms to their layers then (graph_get_cb in src/llama-context.cpp).
        self.ties_norms = n_tokens < OFFLOAD_ROWS or RAM not in self.placement.attention

        tokens = self._input(I32 * n_tokens)
        self._input(F32 * n_tokens * shape.n_embd)  # for image embeds, even in a batch without any
        hidden = self._node(n_tokens * shape.n_embd, tokens, device=RAM)
        self.positions = self._input(I32 * n_tokens)
        self.k_rotation = self._rotation(params.type_k, self._k_rotation_side())
        self.v_rotation = self._rotation(params.type_v, ROTATION)
        self.k_cells = self._input(I64 * n_tokens)
        # Without flash attention V lies transposed, and each value is put into its place by itself.
        self.v_cells = self._input(I64 * n_tokens * (1 if self.flash_attn else shape.n_embd_gqa))
        self.mask = self._input((2 if self.flash_attn else F32) * n_tokens * self.n_ctx)
        self.out_ids = self._input(I32 * self.n_outputs)
        for number in self._layers():
            attended = self._attention(hidden, number)
            if number == shape.n_layer - 1:  # from here on, only the outputs are computed
                attended = self._node(self.n_outputs * shape.n_embd, attended, self.out_ids)
                hidden = self._node(self.n_outputs * shape.n_embd, hidden, self.out_ids)
            hidden = self._mlp(attended, hidden, number)
        normed = self._node(self._n_values(hidden), hidden, in_place=True)  # never tied
        normed = self._weighted(normed, self.weights.output_norm, self.placement.output)
        logits = self._matmul(normed, self.weights.output, self.placement.output)
        normed.kept = logits.kept = True

    def _layers(self) -> Iterator[int]:
        """Numbers of the layers to walk through: where layers repeat each other, a few stand for all."""
        placement, met = self.placement, Counter[Hashable]()
        before: Hashable = None
        for number, layer in enumerate(self.weights.layers):
            devices = (placement.attention[number], placement.ffn[number], placement.kv[number])
            copied = placement.n_gpus and RAM in devices  # then the weights' own sizes count
            kind = (devices, tuple(tensor.nbytes for tensor in layer.tensors.values()) if copied else None)
            met[before, kind] += 1
            if met[before, kind] <= MOST_ALIKE or number == self.shape.n_layer - 1:
                yield number
            before = kind

    def _attention(self, hidden: Tensor, number: int) -> Tensor:
        shape, n_tokens = self.shape, self.n_tokens
        weights, device = self.weights.layers[number].tensors, self.placement.attention[number]
        kv_device = self.placement.kv[number]

        normed = self._norm(hidden, weights["attn_norm.weight"], device)
        q = self._rotate(self._head(normed, "attn_q", number), self.k_rotation)
        v = self._rotate(self._projection(normed, "attn_v", number), self.v_rotation)
        k = self._rotate(self._head(normed, "attn_k", number), self.k_rotation)
        for new, cells in ((k, self.k_cells), (v, self.v_cells)):
            self._node(0, new, cells, device=kv_device)  # written into the cache

        k_cache, v_cache = (
            Tensor(self.n_ctx * row_bytes(kind, shape.n_embd_gqa), kv_device)
            for kind in (self.params.type_k, self.params.type_v)
        )
        width = n_tokens * shape.n_embd_q
        if self.flash_attn:
            attended = self._node(width, q, k_cache, v_cache, self.mask)
        else:
            scores = self._node(n_tokens * self.n_ctx * shape.n_head, k_cache, q)
            scores = self._node(n_tokens * self.n_ctx * shape.n_head, scores, self.mask, in_place=True)
            mixed = self._node(width, v_cache, scores)
            attended = self._node(width, mixed, device=ANYWHERE if self.params.offload_kqv else RAM)
        attended = self._rotate(attended, self.v_rotation)
        return self._matmul(attended, weights["attn_output.weight"], device)

    def _mlp(self, attended: Tensor, hidden: Tensor, number: int) -> Tensor:
        weights, device = self.weights.layers[number].tensors, self.placement.ffn[number]
        residual = self._node(self._n_values(hidden), attended, hidden, in_place=True)
        normed = self._norm(residual, weights["ffn_norm.weight"], self.placement.attention[number])
        gate = self._matmul(normed, weights["ffn_gate.weight"], device)
        up = self._matmul(normed, weights["ffn_up.weight"], device)
        activated = self._node(self._n_values(gate), gate, up)
        down = self._matmul(activated, weights["ffn_down.weight"], device)
        return self._node(self._n_values(down), down, residual, in_place=True)

    def _head(self, x: Tensor, name: str, number: int) -> Tensor:
        """Q or K with its positions. The projection is reshaped, and nothing is written over a view."""
        projection = self._projection(x, name, number)
        norm = self.weights.layers[number].tensors.get(f"{name}_norm.weight")
        if norm is None:
            return self._node(self._n_values(projection), projection, self.positions)
        normed = self._norm(projection, norm, self.placement.attention[number], in_place=False)
        return self._node(self._n_values(normed), normed, self.positions, in_place=True)

    def _projection(self, x: Tensor, name: str, number: int) -> Tensor:
        weights, device = self.weights.layers[number].tensors, self.placement.attention[number]
        product = self._matmul(x, weights[f"{name}.weight"], device)
        bias = weights.get(f"{name}.bias")
        return product if bias is None else self._weighted(product, bias, device)

    def _norm(self, x: Tensor, weight: TensorInfo, device: int, *, in_place: bool = True) -> Tensor:
        tied = device if self.ties_norms else ANYWHERE
        normed = self._node(self._n_values(x), x, in_place=in_place, device=tied)
        return self._weighted(normed, weight, device)

    def _weighted(self, x: Tensor, weight: TensorInfo, device: int) -> Tensor:
        """A vector of weights added to, or multiplied with, every row."""
        where = self._device(device, self._n_values(x) // weight.dims[0])
        parents = (x, Tensor(weight.nbytes, device, is_weight=True))
        return self._node(self._n_values(x), *parents, in_place=True, device=where)

    def _matmul(self, x: Tensor, weight: TensorInfo, device: int) -> Tensor:
        row_length, n_rows = weight.dims
        n_tokens = self._n_values(x) // row_length
        where = self._device(device, n_tokens)
        return self._node(n_tokens * n_rows, Tensor(weight.nbytes, device, is_weight=True), x, device=where)

    def _rotate(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        return x if rotation is None else self._node(self._n_values(x), rotation, x)

    def _rotation(self, cache_type: CacheType, side: int) -> Tensor | None:
        """The Hadamard matrix that spreads outliers before K or V is quantized (llama_kv_cache)."""
        if cache_type in FLOAT_CACHES or self.shape.n_embd_head % ROTATION:
            return None
        return self._input(F32 * side * side)

    def _k_rotation_side(self) -> int:
        side = ROTATION
        while self.shape.n_embd_head % (2 * side) == 0:
            side *= 2
        return side

    def _device(self, home: int, n_rows: int) -> int:
        """Where an operation on ``n_rows`` rows with weights at ``home`` is computed."""
        offloads = self.placement.n_gpus and self.params.op_offload and n_rows >= OFFLOAD_ROWS
        return 1 if home == RAM and offloads else home

    def _n_values(self, x: Tensor) -> int:
        return x.n_bytes // F32

    def _input(self, n_bytes: int) -> Tensor:
        self.inputs.append(Tensor(n_bytes, RAM))
        return self.inputs[-1]

    def _node(
        self, n_values: int, *parents: Tensor, in_place: bool = False, device: int = ANYWHERE
    ) -> Tensor:
        """A node of float32 values; without a ``device`` it is computed where its neighbours are."""
        self.nodes.append(Tensor(F32 * n_values, device, parents, in_place))
        return self.nodes[-1]
