"""The vision tower and projector as an ONNX graph, without torch.

``pixel_values`` float32 [B, 3, H, W] -> ``image_embeds`` float32 [B, n_image_tokens, n_embd].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.bundle import FileRecord, ImageSpec, VisionFile
from acestep_gguf.convert.config import LlavaConfig, VisionConfig
from acestep_gguf.convert.onnx_graph import MICROSOFT, OnnxGraph
from acestep_gguf.convert.position_embedding import interpolate_positions
from acestep_gguf.convert.safetensors_file import SafetensorsTensor
from acestep_gguf.errors import UnsupportedModelError
from acestep_gguf.names import vision_file_name
from acestep_gguf.quantize.staging import Staging

# Activation in config.json -> ONNX operator. "gelu" is the exact one, with erf.
ACTIVATIONS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "gelu": ("Gelu", {}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "quick_gelu": ("QuickGelu", {"domain": MICROSOFT, "alpha": 1.702}),
}

Tensors = Mapping[str, SafetensorsTensor]


def check_activations(config: LlavaConfig) -> None:
    """Refuse activations that the graph has no operator for.

    Raises:
        UnsupportedModelError: there is one.
    """
    for activation in (config.vision_config.hidden_act, config.projector_hidden_act):
        if activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"the activation {activation!r} is not supported in a tower or projector: "
                f"supported are {', '.join(ACTIVATIONS)}."
            )


@dataclass(frozen=True, slots=True)
class PlannedVision:
    """An ONNX file and its external data, ready to be written."""

    name: str
    model: bytes
    graph: OnnxGraph

    @property
    def data_name(self) -> str:
        """Name of the file of the weights."""
        return f"{self.name}.data"

    def write(self, staging: Staging) -> VisionFile:
        """Write both files."""
        data = staging.create(self.data_name)
        self.graph.write_data(data)
        file = staging.create(self.name)
        file.write(self.model)
        return VisionFile(
            file=self.name,
            bytes=file.n_bytes,
            sha256=file.sha256,
            data=FileRecord(file=self.data_name, bytes=data.n_bytes, sha256=data.sha256),
            cosine_to_float32=1.0,
        )


def plan_vision(config: LlavaConfig, image: ImageSpec, tensors: Tensors) -> PlannedVision:
    """The tower and projector for pictures of ``image.size``."""
    name = vision_file_name("float32")
    builder = ClipGraph(config, tensors, image_size=image.size.height)
    image_embeds = builder.project(builder.select_features(builder.encode("pixel_values")))
    model = builder.graph.to_model(
        inputs={"pixel_values": ("B", 3, image.size.height, image.size.width)},
        outputs={image_embeds: ("B", image.n_image_tokens, image.n_embd)},
        data_file=f"{name}.data",
    )
    return PlannedVision(name, model.SerializeToString(deterministic=True), builder.graph)


class ClipGraph:
    """CLIPVisionModel and LlavaMultiModalProjector, node by node."""

    def __init__(self, config: LlavaConfig, tensors: Tensors, image_size: int) -> None:
        self.graph = OnnxGraph()
        self._config = config
        self._vision: VisionConfig = config.vision_config
        self._tensors = tensors
        self._n_side = image_size // config.vision_config.patch_size

    def encode(self, pixel_values: str) -> list[str]:
        """Hidden states [B, 1 + n_patches, hidden_size]: of the embeddings, then after each layer needed."""
        hidden = self._layer_norm(self._embed(pixel_values), "v.pre_ln")
        states = [hidden]
        for bid in range(max(self._config.feature_layers)):
            hidden = self._attention(hidden, f"v.blk.{bid}")
            hidden = self._mlp(hidden, f"v.blk.{bid}")
            states.append(hidden)
        return states

    def select_features(self, states: list[str]) -> str:
        """Features [B, n_image_tokens, hidden_size * n feature layers]; the strategy "default" drops CLS."""
        selected = [states[layer] for layer in self._config.feature_layers]
        features = (
            self.graph.node("Concat", selected, "v.features", axis=2) if len(selected) > 1 else selected[0]
        )
        if self._config.vision_feature_select_strategy == "full":
            return features
        bounds = [
            self.graph.constant("v.patches.start", [1]),
            self.graph.constant("v.patches.end", [2**31 - 1]),
            self.graph.constant("v.patches.axis", [1]),
        ]
        return self.graph.node("Slice", [features, *bounds], "v.patches")

    def project(self, features: str) -> str:
        """Image embeds [B, n_image_tokens, n_embd]."""
        hidden = self._linear(features, "mm.1", "mm.1.out")
        hidden = self._activation(self._config.projector_hidden_act, hidden, "mm.act")
        return self._linear(hidden, "mm.2", "image_embeds")

    def _embed(self, pixel_values: str) -> str:
        """Patches, with CLS before them, plus their positions."""
        hidden_size, patch_size = self._vision.hidden_size, self._vision.patch_size
        patches = self.graph.node(
            "Conv",
            [pixel_values, self._weight("v.patch_embd.weight")],
            "v.patch_embd",
            strides=[patch_size, patch_size],
        )
        shape = self.graph.constant("v.patch_embd.shape", [0, hidden_size, -1])
        patches = self.graph.node("Reshape", [patches, shape], "v.patch_embd.flat")
        patches = self.graph.node("Transpose", [patches], "v.patch_embd.rows", perm=[0, 2, 1])
        # A row of zeros is where CLS comes in: it is added together with its position.
        pads = self.graph.constant("v.class_embd.pads", [0, 1, 0, 0, 0, 0])
        rows = self.graph.node("Pad", [patches, pads], "v.class_embd.rows")
        positions = self.graph.weight(
            "v.position_embd.weight", (1, self._n_side**2 + 1, hidden_size), self._load_positions
        )
        return self.graph.node("Add", [rows, positions], "v.embd")

    def _load_positions(self) -> NDArray[np.float32]:
        positions = interpolate_positions(self._tensors["v.position_embd.weight"].read(), self._n_side).copy()
        positions[0] += self._tensors["v.class_embd"].read()
        return positions[np.newaxis]

    def _attention(self, hidden: str, block: str) -> str:
        normed = self._layer_norm(hidden, f"{block}.ln1")
        names = [f"{block}.attn_{projection}" for projection in "qkv"]
        projected = [
            self.graph.node("MatMul", [normed, self._transposed(f"{name}.weight")], name) for name in names
        ]
        biases = [self._tensors[f"{name}.bias"] for name in names]
        bias = self.graph.weight(
            f"{block}.attn_qkv.bias",
            (3 * self._vision.hidden_size,),
            lambda: np.concatenate([tensor.read() for tensor in biases]),
        )
        attended = self.graph.node(
            "MultiHeadAttention",
            [*projected, bias],
            f"{block}.attn",
            domain=MICROSOFT,
            num_heads=self._vision.num_attention_heads,
        )
        return self._add(hidden, self._linear(attended, f"{block}.attn_out"), f"{block}.attn_residual")

    def _mlp(self, hidden: str, block: str) -> str:
        normed = self._layer_norm(hidden, f"{block}.ln2")
        up = self._linear(normed, f"{block}.ffn_up")
        activated = self._activation(self._vision.hidden_act, up, f"{block}.ffn_act")
        return self._add(hidden, self._linear(activated, f"{block}.ffn_down"), f"{block}.out")

    def _linear(self, x: str, name: str, output: str | None = None) -> str:
        output = output or name
        weight = self._transposed(f"{name}.weight")
        if f"{name}.bias" not in self._tensors:
            return self.graph.node("MatMul", [x, weight], output)
        product = self.graph.node("MatMul", [x, weight], f"{name}.product")
        return self._add(product, self._weight(f"{name}.bias"), output)

    def _layer_norm(self, x: str, name: str) -> str:
        weights = [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self.graph.node("LayerNormalization", [x, *weights], name, epsilon=self._vision.layer_norm_eps)

    def _activation(self, activation: str, x: str, name: str) -> str:
        op, attributes = ACTIVATIONS[activation]
        return self.graph.node(op, [x], name, **attributes)

    def _add(self, left: str, right: str, name: str) -> str:
        return self.graph.node("Add", [left, right], name)

    def _weight(self, name: str) -> str:
        tensor = self._tensors[name]
        return self.graph.weight(name, tensor.shape, tensor.read)

    def _transposed(self, name: str) -> str:
        """A linear layer's weight [out, in] as MatMul wants it, [in, out]."""
        tensor = self._tensors[name]
        return self.graph.weight(name, tensor.shape[::-1], lambda: tensor.read().T)
