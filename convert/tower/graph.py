"""The vision tower and projector as an ONNX graph, without torch.

``pixel_values`` float32 [B, 3, H, W] -> ``image_embeds`` float32 [B, n_image_tokens, n_embd], and
``patch_attention`` float32 [B, n_patches], or one for each token where several patches are one;
``image_newline`` float32 [n_embd] of models that have one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from acestep_gguf.convert.checkpoint.config import VisionConfig, VisionLanguageConfig
from acestep_gguf.convert.onnx_graph import MICROSOFT
from acestep_gguf.convert.tower.int8 import Divisors, Int8Inputs
from acestep_gguf.convert.tower.layers import ACTIVATIONS, Layers, Tensors, divided
from acestep_gguf.convert.tower.position_embedding import fractional_buckets, positions_of_size
from acestep_gguf.convert.tower.resampler import resampled
from acestep_gguf.errors import UnsupportedModelError

# Constants in transformers' code, whatever config.json says.
QK_NORM_EPS: Final = 1e-6
PROJECTOR_NORM_EPS: Final = 1e-5

# Where patches lie, float32 [1, n_patches], in a tower that rotates queries and keys by it.
PLACES: Final = "v.places"


def check_activations(config: VisionLanguageConfig) -> None:
    """Refuse activations that the graph has no operator for.

    Raises:
        UnsupportedModelError: there is one.
    """
    perceiver = config.perceiver_config
    of_resampler = () if perceiver is None else (perceiver.hidden_act,)
    for activation in (config.vision_config.hidden_act, config.projector_hidden_act, *of_resampler):
        if activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"the activation {activation!r} is not supported in a tower or projector: "
                f"supported are {', '.join(ACTIVATIONS)}."
            )


class TowerGraph(Layers):
    """CLIPVisionModel, SiglipVisionModel or what is like them, and the projector, node by node.

    Which tensors there are tells which steps there are: a class token, biases, norms and where they stand, a
    projector of one layer. A projector always computes in float32, since nothing that follows evens out its
    errors; what is before a resampler, and its MLPs, need not.
    """

    def __init__(
        self, config: VisionLanguageConfig, tensors: Tensors, image_size: int, int8: Int8Inputs | None = None
    ) -> None:
        super().__init__(tensors, int8, config.vision_config.layer_norm_eps)
        self._config = config
        self._vision: VisionConfig = config.vision_config
        self._n_side = image_size // config.vision_config.patch_size
        self._rotations: tuple[str, ...] = ()
        # As attention takes them, by the name of the layer.
        self._queries_and_keys: dict[str, tuple[str, str]] = {}

    @property
    def n_blocks(self) -> int:
        """Layers of the tower that the projector needs."""
        return max(self._config.feature_layers)

    @property
    def n_scores(self) -> int:
        """Patches of a picture, or squares of them, which ``patch_attention`` has a number for."""
        return (self._n_side // self._config.shuffle_factor) ** 2

    def build(self) -> str:
        """The whole tower and projector: image embeds [B, n_image_tokens, n_embd]."""
        hidden = self.embed("pixel_values")
        states = {0: hidden}
        for bid in range(self.n_blocks):
            hidden = states[bid + 1] = self.block(hidden, bid)
        return self.project(self.select_features(states))

    def embed(self, pixel_values: str) -> str:
        """Hidden states before the first layer, [B, n_patches, hidden_size], one more with CLS."""
        hidden = self._embed(pixel_values)
        return self.norm(hidden, "v.pre_ln") if "v.pre_ln.weight" in self._tensors else hidden

    def block(self, hidden: str, bid: int) -> str:
        """Hidden states after the layer ``bid``."""
        return self._mlp(self._attention(hidden, f"v.blk.{bid}"), f"v.blk.{bid}")

    def select_features(self, states: Mapping[int, str]) -> str:
        """Features [B, n_image_tokens, hidden_size * n feature layers]; "default" drops the first, CLS."""
        selected = [states[layer] for layer in self._config.feature_layers]
        features = (
            self.graph.node("Concat", selected, "v.features", axis=2) if len(selected) > 1 else selected[0]
        )
        if "v.post_ln.weight" in self._tensors:
            features = self.norm(features, "v.post_ln")
        if self._config.vision_feature_select_strategy == "default":
            features = self.slice(features, "v.patches", axis=1, start=1)
        return features if self._config.shuffle_factor == 1 else self._pixel_shuffle(features)

    def project(self, features: str) -> str:
        """Image embeds [B, n_image_tokens, n_embd]."""
        if self._config.perceiver_config is not None:
            return resampled(self, features, self._config)
        if "mm.fc.weight" in self._tensors:
            return self.linear(features, "mm.fc", "image_embeds")
        if "mm.norm.weight" in self._tensors:
            features = self.norm(features, "mm.norm", PROJECTOR_NORM_EPS)
        hidden = self.linear(features, "mm.1", "mm.1.out")
        hidden = self.activation(self._config.projector_hidden_act, hidden, "mm.act")
        return self.linear(hidden, "mm.2", "image_embeds")

    def patch_attention(self) -> str:
        """Attention that each patch gets in the last layer, the mean of its heads: float32 [B, n_scores].

        It is CLS that attends, as in FasterVLM (arXiv 2412.01818); in a tower without CLS, the mean of all
        patches. A key's bias adds the same to all scores of a query, so it does not matter. A square of
        patches that becomes one token gets their mean.
        """
        block = f"v.blk.{self.n_blocks - 1}"
        has_cls = "v.class_embd" in self._tensors
        n_heads = self._vision.num_attention_heads
        head_size = self._vision.hidden_size // n_heads
        heads = self.graph.constant("v.patch_attn.heads", [0, 0, n_heads, head_size])
        axes = self.graph.constant("v.patch_attn.axes", [1, 2])
        scale = self.graph.weight(
            "v.patch_attn.scale", (1,), lambda: np.array([1 / math.sqrt(head_size)], np.float32)
        )

        queries, keys = self._queries_and_keys[block]
        if has_cls:
            queries = self.slice(queries, "v.patch_attn.cls", axis=1, start=0, end=1)
        if f"{block}.attn_q.bias" in self._tensors and not self._has_qk_norm(block):
            bias = self.weight(f"{block}.attn_q.bias")
            queries = self.graph.node("Add", [queries, bias], "v.patch_attn.q_biased")
        queries = self.graph.node("Mul", [queries, scale], "v.patch_attn.q_scaled")
        queries = self.graph.node("Reshape", [queries, heads], "v.patch_attn.q_heads")
        queries = self.graph.node("Transpose", [queries], "v.patch_attn.q", perm=[0, 2, 1, 3])
        keys = self.graph.node("Reshape", [keys, heads], "v.patch_attn.k_heads")
        keys = self.graph.node("Transpose", [keys], "v.patch_attn.k", perm=[0, 2, 3, 1])
        scores = self.graph.node("MatMul", [queries, keys], "v.patch_attn.scores")
        attention = self.graph.node("Softmax", [scores], "v.patch_attn.softmax", axis=-1)
        factor = self._config.shuffle_factor
        found = "patch_attention" if factor == 1 else "v.patch_attn.patches"
        mean = "v.patch_attn.mean" if has_cls else found
        attention = self.graph.node("ReduceMean", [attention, axes], mean, keepdims=0)
        if has_cls:
            attention = self.slice(attention, found, axis=1, start=1)
        if factor == 1:
            return attention
        n_rows = self._n_side // factor
        squares = self.graph.constant("v.patch_attn.squares", [0, n_rows, factor, n_rows, factor])
        attention = self.graph.node("Reshape", [attention, squares], "v.patch_attn.in_squares")
        axes = self.graph.constant("v.patch_attn.square_axes", [2, 4])
        attention = self.graph.node("ReduceMean", [attention, axes], "v.patch_attn.of_squares", keepdims=0)
        flat = self.graph.constant("v.patch_attn.tokens", [0, -1])
        return self.graph.node("Reshape", [attention, flat], "patch_attention")

    def _pixel_shuffle(self, features: str) -> str:
        """Features [B, n_patches, n] as [B, n_tokens, n * patches a token]: InternVL's ``pixel_shuffle``."""
        factor, side = self._config.shuffle_factor, self._n_side
        n_features = self._config.feature_size // factor**2
        n_rows = side // factor
        for step, shape in enumerate(
            ([0, side, n_rows, factor * n_features], [0, n_rows, n_rows, factor**2 * n_features])
        ):
            axes = self.graph.constant(f"v.shuffle.{step}.shape", shape)
            features = self.graph.node("Reshape", [features, axes], f"v.shuffle.{step}.rows")
            features = self.graph.node("Transpose", [features], f"v.shuffle.{step}", perm=[0, 2, 1, 3])
        axes = self.graph.constant("v.shuffle.shape", [0, n_rows**2, factor**2 * n_features])
        return self.graph.node("Reshape", [features, axes], "v.shuffled")

    def image_newline(self) -> str:
        """What ends a row of a picture's embeds: float32 [n_embd]."""
        return self.graph.node("Identity", [self.weight("model.image_newline")], "image_newline")

    def _embed(self, pixel_values: str) -> str:
        """Patches, with CLS before them if the tower has it, plus their positions."""
        hidden_size, patch_size = self._vision.hidden_size, self._vision.patch_size
        names = [name for name in ("v.patch_embd.weight", "v.patch_embd.bias") if name in self._tensors]
        patches = self.graph.node(
            "Conv",
            [pixel_values, *map(self.weight, names)],
            "v.patch_embd",
            strides=[patch_size, patch_size],
        )
        if self._rotates:
            self._place(patches)
        grid = patches
        shape = self.graph.constant("v.patch_embd.shape", [0, hidden_size, -1])
        patches = self.graph.node("Reshape", [patches, shape], "v.patch_embd.flat")
        patches = self.graph.node("Transpose", [patches], "v.patch_embd.rows", perm=[0, 2, 1])
        has_cls = "v.class_embd" in self._tensors
        if has_cls:
            # A row of zeros is where CLS comes in: it is added together with its position.
            pads = self.graph.constant("v.class_embd.pads", [0, 1, 0, 0, 0, 0])
            patches = self.graph.node("Pad", [patches, pads], "v.class_embd.rows")
        if "v.position_embd.weight" not in self._tensors:
            return patches
        if self._vision.family.has_any_size:
            return self.add(patches, self._positions_of(grid), "v.embd")
        positions = self.graph.weight(
            "v.position_embd.weight", (1, self._n_side**2 + has_cls, hidden_size), self._load_positions
        )
        return self.graph.node("Add", [patches, positions], "v.embd")

    @property
    def _rotates(self) -> bool:
        """Whether queries and keys are rotated by the rows and columns of their patches."""
        return "v.position_embd.weight" not in self._tensors

    def _place(self, patches: str) -> None:
        """``PLACES`` of ``patches`` [1, hidden_size, rows, columns], in the grid of the largest picture."""
        side = self._n_side
        places = self.graph.weight(
            "v.places.all", (side, side), lambda: np.arange(side**2, dtype=np.float32).reshape(side, side)
        )
        grid = self.graph.node("Shape", [patches], "v.places.grid", start=2, end=4)
        start = self.graph.constant("v.places.start", [0, 0])
        axes = self.graph.constant("v.places.axes", [0, 1])
        seen = self.graph.node("Slice", [places, start, grid, axes], "v.places.seen")
        flat = self.graph.constant("v.places.flat", [1, -1])
        self.graph.node("Reshape", [seen, flat], PLACES)

    def _rotated(self, x: str, name: str) -> str:
        """Queries or keys [1, n_patches, hidden_size], rotated as ``PixtralVisionRotaryEmbedding`` says."""
        places = self.graph.node("Cast", [PLACES], f"{name}.places", to=int(TensorProto.INT64))
        if not self._rotations:
            shape = (self._n_side**2, self._vision.hidden_size // self._vision.num_attention_heads // 2)
            self._rotations = (
                self.graph.weight("v.rope.cos", shape, lambda: np.cos(self._angles())),
                self.graph.weight("v.rope.sin", shape, lambda: np.sin(self._angles())),
            )
        inputs = [x, places, *self._rotations]
        return self.graph.node("RotaryEmbedding", inputs, f"{name}.rotated", domain=MICROSOFT)

    def _angles(self) -> NDArray[np.float32]:
        """Of all places, [n_side², head_size / 2]: every other wave for the row, the rest for the column."""
        head_size = self._vision.hidden_size // self._vision.num_attention_heads
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        waves = (1.0 / np.float32(self._vision.rope_theta) ** exponents).astype(np.float32)
        sides = np.arange(self._n_side, dtype=np.float32)
        shape = (self._n_side, self._n_side, head_size // 4)
        rows = np.broadcast_to((sides[:, np.newaxis] * waves[0::2])[:, np.newaxis], shape)
        columns = np.broadcast_to(sides[:, np.newaxis] * waves[1::2], shape)
        return np.concatenate([rows, columns], axis=2).reshape(self._n_side**2, -1)

    def _positions_of(self, patches: str) -> str:
        """Positions [n_patches, hidden_size] of ``patches`` [B, hidden_size, rows, columns].

        Which row of the table along a side each of so many patches takes is itself a table.
        """
        n_table, most = self._vision.patches_per_side, self._n_side
        buckets = self.graph.weight("v.buckets", (most + 1, most), lambda: _all_buckets(n_table, most))
        start, axis = (self.graph.constant(f"v.buckets.{key}", [n]) for key, n in (("start", 0), ("axis", 1)))

        def numbers(side: str, axis_here: int, shape: Sequence[int]) -> str:
            n = self.graph.node("Shape", [patches], f"v.{side}", start=axis_here, end=axis_here + 1)
            all_of = self.graph.node("Gather", [buckets, n], f"v.{side}.all", axis=0)
            taken = self.graph.node("Slice", [all_of, start, n, axis], f"v.{side}.taken")
            return self.graph.node(
                "Reshape", [taken, self.graph.constant(f"v.{side}.shape", shape)], f"v.{side}.numbers"
            )

        rows, columns = numbers("rows", 2, [-1, 1]), numbers("columns", 3, [1, -1])
        width = self.graph.constant("v.buckets.width", np.float32(n_table))
        first = self.graph.node("Mul", [rows, width], "v.rows.first")
        grid = self.graph.node(
            "Cast", [self.add(first, columns, "v.grid")], "v.grid.int", to=int(TensorProto.INT64)
        )
        flat = self.graph.node("Reshape", [grid, self.graph.constant("v.grid.shape", [-1])], "v.grid.flat")
        return self.graph.node("Gather", [self.weight("v.position_embd.weight"), flat], "v.positions", axis=0)

    def _load_positions(self) -> NDArray[np.float32]:
        table = self._tensors["v.position_embd.weight"].read()
        fractional = self._vision.family.has_fractional_positions
        positions = positions_of_size(table, self._n_side, fractional=fractional).copy()
        if "v.class_embd" in self._tensors:
            positions[0] += self._tensors["v.class_embd"].read()
        return positions[np.newaxis]

    def _attention(self, hidden: str, block: str) -> str:
        normed = self.linear_input(self.norm(hidden, f"{block}.ln1"), is_foldable=True)
        # What CLS and patches attend with is a mean of values, so values can be divided for attn_out.
        value_divisors = self.divisors(f"{block}.attn")
        names = [f"{block}.attn_{projection}" for projection in "qk"]
        if has_qk_norm := self._has_qk_norm(block):
            projected = [self.norm(self.linear(normed, name), f"{name}_norm", QK_NORM_EPS) for name in names]
        else:
            projected = [self.product(normed, name, name) for name in names]
        if self._rotates:
            projected = [self._rotated(x, name) for x, name in zip(projected, names, strict=True)]
        self._queries_and_keys[block] = (projected[0], projected[1])
        value = self.product(normed, f"{block}.attn_v", f"{block}.attn_v", divisors=value_divisors)
        inputs = [*projected, value]
        if f"{block}.attn_v.bias" in self._tensors:
            bias = self.graph.weight(
                f"{block}.attn_qkv.bias",
                (3 * self._vision.hidden_size,),
                lambda: self._load_qkv_bias(block, value_divisors, has_qk_norm=has_qk_norm),
            )
            inputs.append(bias)
        attended = self.graph.node(
            "MultiHeadAttention",
            inputs,
            f"{block}.attn",
            domain=MICROSOFT,
            num_heads=self._vision.num_attention_heads,
        )
        source = self.linear_input(attended, is_foldable=True)
        return self.add(hidden, self.linear(source, f"{block}.attn_out"), f"{block}.attn_residual")

    def _has_qk_norm(self, block: str) -> bool:
        return f"{block}.attn_q_norm.weight" in self._tensors

    def _load_qkv_bias(
        self, block: str, value_divisors: Divisors | None, *, has_qk_norm: bool
    ) -> NDArray[np.float32]:
        """Biases of queries, keys and values; zeros for the first two where they came before a norm."""
        query, key, value = (self._tensors[f"{block}.attn_{projection}.bias"].read() for projection in "qkv")
        if has_qk_norm:
            query, key = np.zeros_like(query), np.zeros_like(key)
        return np.concatenate([query, key, divided(value, value_divisors)])

    def _mlp(self, hidden: str, block: str) -> str:
        normed = self.linear_input(self.norm(hidden, f"{block}.ln2"), is_foldable=True)
        if f"{block}.ffn_gate.weight" in self._tensors:
            product = self.gated(normed, f"{block}.ffn_", self._vision.hidden_act)
        else:
            up = self.linear(normed, f"{block}.ffn_up")
            product = self.activation(self._vision.hidden_act, up, f"{block}.ffn_act")
        activated = self.linear_input(product)
        return self.add(hidden, self.linear(activated, f"{block}.ffn_down"), f"{block}.out")


def _all_buckets(n_table: int, most: int) -> NDArray[np.float32]:
    """``fractional_buckets`` of 0 to ``most`` patches, [most + 1, most], with zeros behind them."""
    buckets = np.zeros((most + 1, most), np.float32)
    for n in range(1, most + 1):
        buckets[n, :n] = fractional_buckets(n_table, n)
    return buckets
