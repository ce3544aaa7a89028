"""InternVL3-2B and -38B: folders by hand from the published facts, with holes of the weights' true shapes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import ClosestAspectTiles, ImageSpec, Size
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.vision.blocks import n_tokens
from acestep_gguf.vision.tiling import tiling_of
from tests.convert.test_published_folders import PUBLISHED, with_fillers, write_sparse
from tests.support import tiny_tokenizer
from tests.support.tiny_families import DECODERS

GIB = 2**30

ADDED = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<img>": 151665,
    "</img>": 151666,
    "<IMG_CONTEXT>": 151667,
}
IMAGE = ImageSpec(
    pad_to_square=None,
    resize="exact",
    resize_to=Size(height=448, width=448),
    resample="bicubic",
    center_crop=None,
    rescale_factor=0.00392156862745098,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    size=Size(height=448, width=448),
    n_image_tokens=256,
    n_embd=1536,
    tiles=ClosestAspectTiles(min_tiles=1, max_tiles=12),
)
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def decoder_shapes(text: dict[str, Any]) -> Shapes:
    n_embd, n_ff = text["hidden_size"], text["intermediate_size"]
    n_kv = n_embd // text["num_attention_heads"] * text["num_key_value_heads"]
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], n_embd)
    for bid in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{bid}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (n_embd,)
        for name, n_rows in (("q", n_embd), ("k", n_kv), ("v", n_kv)):
            yield f"{layer}self_attn.{name}_proj.weight", (n_rows, n_embd)
            yield f"{layer}self_attn.{name}_proj.bias", (n_rows,)
        yield f"{layer}self_attn.o_proj.weight", (n_embd, n_embd)
        for name, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            yield f"{layer}mlp.{name}_proj.weight", shape
    yield "language_model.model.norm.weight", (n_embd,)
    yield "language_model.lm_head.weight", (text["vocab_size"], n_embd)


def linear(name: str, n_out: int, n_in: int) -> Shapes:
    yield f"{name}.weight", (n_out, n_in)
    yield f"{name}.bias", (n_out,)


def native_shapes(vision: dict[str, Any], n_embd: int) -> Shapes:
    """Of transformers' layout: the tower of 300M parameters."""
    hidden, n_ff = vision["hidden_size"], vision["intermediate_size"]
    yield "vision_tower.embeddings.cls_token", (1, 1, hidden)
    yield "vision_tower.embeddings.position_embeddings", (1, 1025, hidden)
    yield "vision_tower.embeddings.patch_embeddings.projection.weight", (hidden, 3, 14, 14)
    yield "vision_tower.embeddings.patch_embeddings.projection.bias", (hidden,)
    for bid in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.encoder.layer.{bid}."
        for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            yield from linear(f"{layer}attention.{name}", hidden, hidden)
        for name in ("layernorm_before", "layernorm_after"):
            yield f"{layer}{name}.weight", (hidden,)
            yield f"{layer}{name}.bias", (hidden,)
        yield from ((f"{layer}lambda_{number}", (hidden,)) for number in (1, 2))
        yield from linear(f"{layer}mlp.fc1", n_ff, hidden)
        yield from linear(f"{layer}mlp.fc2", hidden, n_ff)
    yield "multi_modal_projector.layer_norm.weight", (4 * hidden,)
    yield "multi_modal_projector.layer_norm.bias", (4 * hidden,)
    yield from linear("multi_modal_projector.linear_1", n_embd, 4 * hidden)
    yield from linear("multi_modal_projector.linear_2", n_embd, n_embd)


def original_shapes(vision: dict[str, Any], n_embd: int) -> Shapes:
    """Of InternVL's own layout: the tower of 6B parameters, no biases of queries, keys and values."""
    hidden, n_ff = vision["hidden_size"], vision["intermediate_size"]
    yield "vision_model.embeddings.class_embedding", (1, 1, hidden)
    yield "vision_model.embeddings.position_embedding", (1, 1025, hidden)
    yield "vision_model.embeddings.patch_embedding.weight", (hidden, 3, 14, 14)
    yield "vision_model.embeddings.patch_embedding.bias", (hidden,)
    for bid in range(vision["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{bid}."
        yield f"{layer}attn.qkv.weight", (3 * hidden, hidden)
        yield from linear(f"{layer}attn.proj", hidden, hidden)
        for name in ("norm1", "norm2", "attn.q_norm", "attn.k_norm"):
            yield f"{layer}{name}.weight", (hidden,)
        yield from ((f"{layer}ls{number}", (hidden,)) for number in (1, 2))
        yield from linear(f"{layer}mlp.fc1", n_ff, hidden)
        yield from linear(f"{layer}mlp.fc2", hidden, n_ff)
    yield "mlp1.0.weight", (4 * hidden,)
    yield "mlp1.0.bias", (4 * hidden,)
    yield from linear("mlp1.1", n_embd, 4 * hidden)
    yield from linear("mlp1.3", n_embd, n_embd)


def write_folder(folder: Path, name: str) -> Path:
    """A version-4 folder around the config of ``name``."""
    folder.mkdir()
    config = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    tokenizer = with_fillers(tiny_tokenizer.tokenizer_json(merges_as_pairs=False), 151643, ADDED)
    template = DECODERS["qwen2"].chat_template.replace("<image>", "<IMG_CONTEXT>")
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": DECODERS["qwen2"].tokenizer_config,
        "chat_template.json": {"chat_template": template},
    }
    processor = PUBLISHED / f"{name}.preprocessor_config.json"
    if processor.exists():
        files["preprocessor_config.json"] = json.loads(processor.read_text())
        files["processor_config.json"] = {"image_seq_length": 256, "processor_class": "InternVLProcessor"}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    text = config.get("text_config") or config["llm_config"]
    tower_shapes = native_shapes if "text_config" in config else original_shapes
    shapes = dict(decoder_shapes(text)) | dict(tower_shapes(config["vision_config"], text["hidden_size"]))
    write_sparse(folder / "model.safetensors", shapes, "BF16")
    return folder


def read(folder: Path) -> CheckpointModel:
    with open_model(folder, None) as model:
        return model


def test_internvl3_2b(tmp_path: Path) -> None:
    model = read(write_folder(tmp_path / "c", "internvl3-2b-hf"))
    assert (model.source.vision_model_type, model.source.text_model_type) == ("internvl_vision", "qwen2")
    # Without tie_word_embeddings at the top, the output matrix is the embeddings if it is equal to them.
    assert model.size_label == "1.5B"
    assert model.image == IMAGE
    assert model.config.text_config.context_length == 32768
    assert "v.blk.23.attn_q.bias" in model.tensors.tower
    # A picture of a usual aspect costs as much as any.
    assert n_tokens(tiling_of(IMAGE).blocks((640, 480))) == 13 * 256
    assert n_tokens(tiling_of(IMAGE, max_tiles=1).blocks((640, 480))) == 256


def test_internvl3_38b(tmp_path: Path) -> None:
    model = read(write_folder(tmp_path / "c", "internvl3-38b"))
    assert (model.source.vision_model_type, model.source.text_model_type) == ("intern_vit_6b", "qwen2")
    assert model.size_label == "33B"
    assert model.image is not None
    assert (model.image.n_embd, model.image.tiles) == (5120, IMAGE.tiles)
    tower = model.tensors.tower
    assert tower["v.blk.44.attn_k.weight"].shape == (3200, 3200)
    assert tower["v.blk.44.attn_k_norm.weight"].shape == (3200,)
    assert tower["mm.1.weight"].shape == (5120, 12800)
    assert not any(name.endswith((".ln1.bias", ".attn_q.bias")) for name in tower)


@pytest.mark.parametrize(("ftype", "bits"), [("Q4_K_M", 4.85), ("Q8_0", 8.5)])
def test_internvl3_38b_is_planned_at_its_full_size(tmp_path: Path, ftype: Ftype, bits: float) -> None:
    plan = plan_conversion(write_folder(tmp_path / "c", "internvl3-38b"), tmp_path / "out", [ftype])
    sizes = {file.file: file.bytes for file in plan.files}
    decoder = next(file for file in plan.files if file.label == ftype)
    assert decoder.bits_per_weight == pytest.approx(bits, abs=0.02)
    assert sizes["vision-float32.onnx.data"] == pytest.approx(20.7 * GIB, rel=0.02)
    assert sizes["vision-int8.onnx.data"] < sizes["vision-float32.onnx.data"] / 2
    assert plan.memory < 6 * GIB
