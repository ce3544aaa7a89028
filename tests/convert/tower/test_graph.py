"""The ONNX graph against the tower's formulas, written down a second time in numpy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig, parse_config
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.tower.graph import check_activations
from acestep_gguf.convert.tower.position_embedding import positions_of_size
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from tests.support.tiny_checkpoints import TinyCheckpoint, write_safetensors
from tests.support.tiny_internvl import TinyInternVL
from tests.support.tiny_pixtral import TinyPixtral
from tests.support.tiny_smolvlm import TinySmolVLM

Floats = NDArray[np.float64]

erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


class Reference:
    """A tower of any family, and the projector, in float64."""

    def __init__(self, folder: Path) -> None:
        with open_model(folder, None) as model:
            assert isinstance(model.config, VisionLanguageConfig)
            self.config = model.config
            tensors = model.tensors.tower
            self.weights = {name: tensor.read().astype(np.float64) for name, tensor in tensors.items()}

    def run(self, pixel_values: NDArray[np.float32]) -> dict[str, Floats]:
        """[B, 3, H, W] -> image_embeds [B, n_image_tokens, n_embd] and patch_attention [B, n_patches]."""
        vision = self.config.vision_config
        n_batch, self.grid = len(pixel_values), tuple(n // vision.patch_size for n in pixel_values.shape[2:])
        height, side = self.grid
        grid = pixel_values.astype(np.float64).reshape(
            n_batch, 3, height, vision.patch_size, side, vision.patch_size
        )
        patches = np.einsum("bcyixj,ocij->byxo", grid, self.weights["v.patch_embd.weight"])
        rows = patches.reshape(n_batch, height * side, vision.hidden_size)
        rows = rows + self.weights.get("v.patch_embd.bias", 0.0)
        has_cls = "v.class_embd" in self.weights
        if has_cls:
            cls = np.broadcast_to(self.weights["v.class_embd"], (n_batch, 1, vision.hidden_size))
            rows = np.concatenate([cls, rows], axis=1)
        hidden = rows
        if (positions := self.weights.get("v.position_embd.weight")) is not None:
            fractional = vision.family.has_fractional_positions
            hidden = rows + positions_of_size(positions.astype(np.float32), side, fractional=fractional)
        if "v.pre_ln.weight" in self.weights:
            hidden = self.layer_norm(hidden, "v.pre_ln")

        states = [hidden]
        for bid in range(max(self.config.feature_layers)):
            hidden = hidden + self.attention(self.layer_norm(hidden, f"v.blk.{bid}.ln1"), f"v.blk.{bid}")
            normed = self.layer_norm(hidden, f"v.blk.{bid}.ln2")
            up = self.linear(normed, f"v.blk.{bid}.ffn_up")
            is_gated = f"v.blk.{bid}.ffn_gate.weight" in self.weights
            gate = self.linear(normed, f"v.blk.{bid}.ffn_gate") if is_gated else up
            product = ACTIVATIONS[vision.hidden_act](gate) * (up if is_gated else 1)
            hidden = hidden + self.linear(product, f"v.blk.{bid}.ffn_down")
            states.append(hidden)

        features = np.concatenate([states[layer] for layer in self.config.feature_layers], axis=-1)
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        if "v.post_ln.weight" in self.weights:
            features = self.layer_norm(features, "v.post_ln")
        factor = self.config.shuffle_factor
        squares = (n_batch, side // factor, factor, side // factor, factor)
        if factor > 1:
            features = np.moveaxis(features.reshape(*squares, -1), 2, 3)
            features = features.reshape(n_batch, (side // factor) ** 2, -1)
        if "mm.norm.weight" in self.weights:
            features = self.layer_norm(features, "mm.norm", eps=1e-5)
        if "mm.fc.weight" in self.weights:
            embeds = self.linear(features, "mm.fc")
        else:
            embeds = self.linear(ACTIVATIONS["gelu"](self.linear(features, "mm.1")), "mm.2")
        if "model.image_newline" in self.weights:
            return {"image_embeds": embeds, "image_newline": self.weights["model.image_newline"]}
        if max(self.config.feature_layers) == 0:
            return {"image_embeds": embeds}
        last: Floats = self.attention_weights.mean(axis=1)  # of all heads: [B, queries, keys]
        attention = last[:, 0, 1:] if has_cls else last.mean(axis=1)
        if factor > 1:
            attention = attention.reshape(squares).mean(axis=(2, 4)).reshape(n_batch, -1)
        return {"image_embeds": embeds, "patch_attention": attention}

    def attention(self, x: Floats, block: str) -> Floats:
        n_heads = self.config.vision_config.num_attention_heads
        projected = {name: self.linear(x, f"{block}.attn_{name}") for name in "qkv"}
        for name in "qk" if f"{block}.attn_q_norm.weight" in self.weights else "":
            projected[name] = self.layer_norm(projected[name], f"{block}.attn_{name}_norm", eps=1e-6)
        q, k, v = (rows.reshape(*x.shape[:2], n_heads, -1) for rows in projected.values())
        if "v.position_embd.weight" not in self.weights:
            q, k = self.rotated(q), self.rotated(k)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        self.attention_weights = weights
        return self.linear(np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape), f"{block}.attn_out")

    def rotated(self, heads: Floats) -> Floats:
        """[B, n_patches, n_heads, d], of which pairs i, i + d/2 are complex numbers, turned by angles.

        Pair i of the first d/4 turns by row * theta^(-4i/d), pair i of the others by column *
        theta^(-(4i+2)/d).
        """
        half, theta = heads.shape[-1] // 2, self.config.vision_config.rope_theta
        row, column = np.divmod(np.arange(self.grid[0] * self.grid[1])[:, np.newaxis], self.grid[1])
        i = np.arange(half // 2)
        angles = np.concatenate(
            [row * theta ** (-2 * i / half), column * theta ** (-(2 * i + 1) / half)], axis=1
        )
        turned = (heads[..., :half] + 1j * heads[..., half:]) * np.exp(1j * angles)[:, np.newaxis]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def layer_norm(self, x: Floats, name: str, eps: float | None = None) -> Floats:
        """An RMS norm where there is no bias."""
        is_rms = f"{name}.bias" not in self.weights
        centered = x if is_rms else x - x.mean(axis=-1, keepdims=True)
        variance = (centered**2).mean(axis=-1, keepdims=True)
        normed: Floats = centered / np.sqrt(variance + (eps or self.config.vision_config.layer_norm_eps))
        return normed * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0.0)

    def linear(self, x: Floats, name: str) -> Floats:
        product: Floats = x @ self.weights[f"{name}.weight"].T
        return product + self.weights.get(f"{name}.bias", 0.0)


def run(bundle: Path, pixel_values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The outputs by name."""
    session = onnxruntime.InferenceSession(str(bundle / "vision-float32.onnx"))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixel_values": pixel_values}), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "image_size"),
    [
        ({"activation": "gelu"}, None),
        ({"activation": "quick_gelu"}, None),
        ({"activation": "gelu_pytorch_tanh"}, None),
        ({"strategy": "full"}, None),
        ({"feature_layer": -1}, None),
        ({"feature_layer": 0}, None),
        ({"feature_layer": (-2, -1, 0), "strategy": "full"}, None),
        ({"feature_layer": (3, 1)}, None),
        ({"projector_bias": False}, None),
        ({"patch_size": 10, "image_size": 45}, None),
        ({"image_size": 56}, 84),
        ({"image_size": 56}, 28),
        ({"tower": "siglip", "strategy": "full", "activation": "gelu_pytorch_tanh"}, None),
    ],
    ids=str,
)
def test_graph_computes_the_towers_formulas(
    tmp_path: Path, options: dict[str, Any], image_size: int | None
) -> None:
    check_formulas(TinyCheckpoint(**options), tmp_path, image_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "image_size"),
    [
        ({}, None),
        ({"has_biases": True, "feature_layer": -2}, 84),
        ({"has_qk_norm": True, "norm_type": "rms_norm"}, None),
        ({"has_qk_norm": True, "has_biases": True, "is_original": True}, 112),
    ],
    ids=str,
)
def test_graph_computes_internvls_formulas(
    tmp_path: Path, options: dict[str, Any], image_size: int | None
) -> None:
    check_formulas(TinyInternVL(**options), tmp_path, image_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "image_size"),
    [({}, None), ({"image_size": 42, "patch_size": 7, "scale_factor": 3}, 63)],
    ids=str,
)
def test_graph_computes_smolvlms_formulas(
    tmp_path: Path, options: dict[str, Any], image_size: int | None
) -> None:
    check_formulas(TinySmolVLM(decoder="smollm", **options), tmp_path, image_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "silu", "vision_rope_theta": 100.0, "patch_size": 4}],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (24, 56), (8, 16)])
def test_graph_computes_pixtrals_formulas(
    tmp_path: Path, options: dict[str, Any], size: tuple[int, int]
) -> None:
    checkpoint = TinyPixtral(decoder="mistral", **options).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["float32"])
    pixel_values = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    expected = Reference(checkpoint).run(pixel_values)
    outputs = run(tmp_path / "bundle", pixel_values)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        assert outputs[name].shape == values.shape
        assert np.abs(outputs[name] - values).max() < 1e-5 * np.abs(values).max()


def check_formulas(tiny: TinyCheckpoint, tmp_path: Path, image_size: int | None) -> None:
    checkpoint = tiny.write(tmp_path / "checkpoint")
    bundle = convert_checkpoint(
        checkpoint, tmp_path / "bundle", ["Q8_0"], image_size=image_size, vision=["float32"]
    )
    side = image_size or tiny.image_size
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)

    used = side // tiny.patch_size * tiny.patch_size
    expected = Reference(checkpoint).run(pixel_values[..., :used, :used])
    outputs = run(tmp_path / "bundle", pixel_values)

    _, image = bundle.tower()
    assert outputs["image_embeds"].shape == (2, image.n_image_tokens, image.n_embd)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(outputs[name] - values).max() < 1e-5 * np.abs(values).max()


def test_graph_is_sound_and_its_data_is_streamed_beside_it(tmp_path: Path) -> None:
    bundle = convert_checkpoint(TinyCheckpoint().write(tmp_path / "c"), tmp_path / "bundle", ["Q8_0"])
    for record in bundle.tower()[0].files.values():
        onnx.checker.check_model(tmp_path / "bundle" / record.file, full_check=True)
        model = onnx.load(tmp_path / "bundle" / record.file, load_external_data=False)
        assert {entry.value for tensor in model.graph.initializer for entry in tensor.external_data[:1]} == {
            record.data.file
        }
        assert record.bytes < 20_000 < record.data.bytes
    assert bundle.vision_file("float32").cosine_to_float32 == 1.0
    assert 0.99 < bundle.vision_file("int8").cosine_to_float32 < 1.0


@pytest.mark.parametrize("norm_type", ["layer_norm", "rms_norm"])
def test_the_int8_tower_of_internvl_is_close(tmp_path: Path, norm_type: str) -> None:
    tiny = TinyInternVL(norm_type=norm_type, has_qk_norm=norm_type == "rms_norm")  # type: ignore[arg-type]
    bundle = convert_checkpoint(tiny.write(tmp_path / "c"), tmp_path / "bundle", ["Q8_0"], vision=["int8"])
    file = bundle.vision_file("int8")
    model = onnx.load(tmp_path / "bundle" / file.file, load_external_data=False)
    quantized = [node for node in model.graph.node if node.op_type == "DynamicQuantizeMatMul"]
    assert len(quantized) == 6 * tiny.vision_n_layers
    assert file.cosine_to_float32 > 0.999


def test_int8_multiplies_what_its_norms_divided(tmp_path: Path) -> None:
    """In the int8 tower alone, and most of all where channels stand out."""
    checkpoint = TinyCheckpoint(n_outliers=4).write(tmp_path / "c")
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])

    def norm(precision: str) -> NDArray[np.float32]:
        model = onnx.load(tmp_path / "bundle" / bundle.vision_file(precision).file)
        (weight,) = [w for w in model.graph.initializer if w.name == "v.blk.0.ln1.weight"]
        return np.asarray(onnx.numpy_helper.to_array(weight))

    divisors = norm("float32") / norm("int8")
    assert (divisors > 8 * np.median(divisors)).sum() == 4


def test_damaged_tower_weights_leave_nothing_behind(tmp_path: Path) -> None:
    tiny = TinyCheckpoint()
    folder = tiny.write(tmp_path / "c")
    weights = tiny.tensors()
    weights["multi_modal_projector.linear_2.bias"][3] = np.inf
    write_safetensors(folder / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=r"linear_2\.bias has NaN or infinite weights"):
        convert_checkpoint(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("part", ["vision_config", None])
def test_unknown_activations_are_refused_by_name(part: str | None) -> None:
    raw = TinyCheckpoint().config()
    if part:
        raw[part]["hidden_act"] = "swish"
    else:
        raw["projector_hidden_act"] = "swish"
    with pytest.raises(UnsupportedModelError, match="'swish'"):
        check_activations(parse_config(raw, Path("config.json")))
