"""IDEFICS-2's positions and connector against their formulas, written down a second time in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from acestep_gguf.convert import convert_checkpoint
from tests.convert.tower.test_graph import ACTIVATIONS, Floats, Reference
from tests.support.tiny_idefics2 import TinyIdefics2

pytestmark = pytest.mark.slow


class Idefics2Reference(Reference):
    """A tower for pictures of any size, and the connector, in float64."""

    def run(self, pixel_values: NDArray[np.float32]) -> dict[str, Floats]:
        """[B, 3, H, W] -> image_embeds [B, n_latents, n_embd]; what is no whole patch is left out."""
        vision = self.config.vision_config
        patch, n_table = vision.patch_size, vision.patches_per_side
        rows, columns = pixel_values.shape[2] // patch, pixel_values.shape[3] // patch
        whole = pixel_values[:, :, : rows * patch, : columns * patch].astype(np.float64)
        grid = whole.reshape(len(whole), 3, rows, patch, columns, patch)
        patches = np.einsum("bcyixj,ocij->byxo", grid, self.weights["v.patch_embd.weight"])
        table = self.weights["v.position_embd.weight"].reshape(n_table, n_table, -1)
        places = table[np.ix_(positions(n_table, rows), positions(n_table, columns))]
        hidden = (patches + self.weights["v.patch_embd.bias"] + places).reshape(
            len(whole), rows * columns, -1
        )
        for bid in range(vision.num_hidden_layers):
            block = f"v.blk.{bid}"
            hidden = hidden + self.attention(self.layer_norm(hidden, f"{block}.ln1"), block)
            up = self.linear(self.layer_norm(hidden, f"{block}.ln2"), f"{block}.ffn_up")
            hidden = hidden + self.linear(ACTIVATIONS[vision.hidden_act](up), f"{block}.ffn_down")
        context = self.gated(self.layer_norm(hidden, "v.post_ln"), "mm.")
        return {"image_embeds": self.resampled(context)}

    def gated(self, x: Floats, prefix: str) -> Floats:
        gate = self.linear(x, f"{prefix}gate")
        silu = gate / (1 + np.exp(-gate))
        return self.linear(silu * self.linear(x, f"{prefix}up"), f"{prefix}down")

    def resampled(self, context: Floats) -> Floats:
        perceiver, eps = self.config.perceiver_config, self.config.resampler_eps
        assert perceiver is not None
        latents = np.stack([self.weights["resampler.latents"]] * len(context))
        for bid in range(perceiver.resampler_depth):
            block = f"resampler.blk.{bid}"
            queries = self.layer_norm(latents, f"{block}.ln_latents", eps)
            seen = np.concatenate([self.layer_norm(context, f"{block}.ln_context", eps), queries], axis=1)
            heads = []
            group = perceiver.resampler_n_heads // perceiver.num_key_value_heads
            size = perceiver.resampler_head_dim
            for head in range(perceiver.resampler_n_heads):
                q, k, v = (
                    self.linear(x, f"{block}.attn_{name}")[..., number * size : (number + 1) * size]
                    for x, name, number in (
                        (queries, "q", head), (seen, "k", head // group), (seen, "v", head // group),
                    )
                )  # fmt: skip
                scores = np.einsum("bqd,bkd->bqk", q, k) / size**0.5
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
            latents = latents + self.linear(np.concatenate(heads, axis=-1), f"{block}.attn_out")
            latents = latents + self.gated(self.layer_norm(latents, f"{block}.ln2", eps), f"{block}.ffn_")
        return self.layer_norm(latents, "resampler.norm", eps)


def positions(n_table: int, n: int) -> list[int]:
    """Which position each of ``n`` patches takes: as many as begin at or before its share, but the first."""
    begins = [np.float32(k * (1 / n_table)) for k in range(1, n_table)]
    shares = [min(np.float32(i) * (np.float32(1) / np.float32(n)), np.float32(1 - 1e-6)) for i in range(n)]
    return [sum(bool(begin <= share) for begin in begins) for share in shares]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_resampler_heads": 6, "n_resampler_kv_heads": 1, "depth": 3, "n_latents": 5},
        {"n_resampler_kv_heads": 4, "image_size": 42, "longest_edge": 84, "resampler_hidden_size": 256},
    ],
    ids=str,
)
def test_graph_computes_the_formulas_for_every_size(tmp_path: Path, options: dict[str, Any]) -> None:
    tiny = TinyIdefics2(decoder="mistral", **options)
    checkpoint = tiny.write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["float32"])
    reference = Idefics2Reference(checkpoint)
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle/vision-float32.onnx"))
    longest = tiny.longest_edge
    for shape in ((longest, longest), (longest, 21), (22, 41), (7, 55)):
        pixels = np.random.default_rng(0).standard_normal((2, 3, *shape)).astype(np.float32)
        (found,) = session.run(["image_embeds"], {"pixel_values": pixels})
        expected = reference.run(pixels)["image_embeds"]
        assert found.shape == (2, tiny.n_latents, tiny.hidden_size)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_resampler_is_quantized_too(tmp_path: Path) -> None:
    """Its MLPs are most of the tower's file; attention and norms stay as they are."""
    checkpoint = TinyIdefics2(decoder="mistral").write(tmp_path / "checkpoint")
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["int8"])
    graph = onnx.load(tmp_path / "bundle/vision-int8.onnx", load_external_data=False).graph
    int8 = {weight.name for weight in graph.initializer if weight.data_type == onnx.TensorProto.INT8}
    assert {"mm.up.weight", "mm.down.weight", "resampler.blk.1.ffn_down.weight"} <= int8
    assert not any("attn" in name for name in int8 if name.startswith("resampler."))
    cosine = bundle.vision_file("int8").centred_cosine_to_float32
    assert cosine is not None
    assert cosine > 0.99
