"""IDEFICS-2's folders by hand from the published facts, with holes of the weights' true shapes."""

import json
from math import prod
from pathlib import Path

import pytest

from acestep_gguf.bundle.image_spec import Quarters, Size
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.errors import CheckpointError
from acestep_gguf.vision.tiling import n_positions, tiling_of
from tests.convert.test_published_folders import (
    PUBLISHED,
    decoder_shapes,
    tower_shapes,
    with_fillers,
    write_sparse,
)
from tests.support import tiny_sentencepiece
from tests.support.tiny_families import DECODERS
from tests.support.tiny_idefics2 import AROUND, END, IDEFICS2_TEMPLATE

GIB = 2**30
NAME = "idefics2-8b"  # -chatty has the same files
ADDED = {AROUND: 32000, "<image>": 32001, END: 32002}
# What text_config leaves out: defaults of its config class.
OMITTED = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def write_folder(folder: Path, name: str = NAME, *, has_template: bool = True) -> Path:
    """A version-4 folder around the published config."""
    folder.mkdir()
    config = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    text, vision, perceiver = (
        OMITTED | config["text_config"],
        config["vision_config"],
        config["perceiver_config"],
    )
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, ADDED[END]], "pad_token_id": 0},
        "preprocessor_config.json": json.loads((PUBLISHED / f"{name}.preprocessor_config.json").read_text()),
        "processor_config.json": {"image_seq_len": 64, "processor_class": "Idefics2Processor"},
        "tokenizer.json": with_fillers(tiny_sentencepiece.tokenizer_json(), 32000, ADDED),
        "tokenizer_config.json": DECODERS["mistral"].tokenizer_config | {"pad_token": "<unk>"},
    }
    if has_template:
        files["chat_template.json"] = {"chat_template": IDEFICS2_TEMPLATE}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    shapes = dict(decoder_shapes(text, bias=False)) | dict(tower_shapes(vision, 1, is_clip=False))
    named = {
        key.replace("vision_tower.vision_model.", "model.vision_model.")
        .replace("language_model.model.", "model.text_model.")
        .replace("language_model.", ""): shape
        for key, shape in shapes.items()
        if not key.startswith("multi_modal_projector.")
    }
    n_embd, n_ff = text["hidden_size"], text["intermediate_size"]
    connector, resampler = "model.connector.modality_projection.", "model.connector.perceiver_resampler."
    for part, n_in, n_out in (
        ("gate", vision["hidden_size"], n_ff), ("up", vision["hidden_size"], n_ff), ("down", n_ff, n_embd),
    ):  # fmt: skip
        named[f"{connector}{part}_proj.weight"] = (n_out, n_in)
    named[f"{resampler}latents"] = (perceiver["resampler_n_latents"], n_embd)
    named[f"{resampler}norm.weight"] = (n_embd,)
    n_q, n_kv = (
        perceiver["resampler_head_dim"] * perceiver[key]
        for key in ("resampler_n_heads", "num_key_value_heads")
    )
    for bid in range(perceiver["resampler_depth"]):
        layer = f"{resampler}layers.{bid}."
        for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
            named[f"{layer}{norm}.weight"] = (n_embd,)
        for part, shape in (
            ("self_attn.q", (n_q, n_embd)), ("self_attn.k", (n_kv, n_embd)), ("self_attn.v", (n_kv, n_embd)),
            ("self_attn.o", (n_embd, n_q)), ("mlp.gate", (4 * n_embd, n_embd)),
            ("mlp.up", (4 * n_embd, n_embd)), ("mlp.down", (n_embd, 4 * n_embd)),
        ):  # fmt: skip
            named[f"{layer}{part}_proj.weight"] = shape
    write_sparse(folder / "model.safetensors", named, "BF16")
    return folder


def test_idefics2_8b(tmp_path: Path) -> None:
    with open_model(write_folder(tmp_path / "c"), None) as model:
        source, prompt, image, tower = model.source, model.prompt, model.image, model.tensors.tower
        assert (source.vision_model_type, source.text_model_type) == ("idefics2_vision", "mistral")
        assert model.size_label == "7.2B"
        assert model.config.text_config.context_length == 4096, "its window"
        n_weights = [
            sum(prod(tensor.shape) for name, tensor in tower.items() if name.startswith(prefix))
            for prefix in ("v.", "mm.", "resampler.")
        ]
        assert n_weights == pytest.approx([0.418e9, 0.092e9, 0.648e9], rel=0.01)
    assert image is not None
    assert (image.size, image.n_image_tokens) == (Size(height=980, width=980), 64)
    assert (image.resample, image.mean, image.std) == ("bilinear", (0.5,) * 3, (0.5,) * 3)
    assert image.tiles == Quarters(splits=True, shortest_edge=378, step=14, between=ADDED[AROUND])
    # And one token before and behind the picture.
    assert n_positions(tiling_of(image), (640, 480)) + 2 == tiling_of(image).most()[1] + 2 == 326
    assert n_positions(tiling_of(image, max_tiles=1), (640, 480)) + 2 == 66
    assert prompt.image_around == AROUND
    assert set(ADDED) <= set(prompt.control_tokens)
    assert set(prompt.stop_tokens) == {"</s>", END}


def test_idefics2_8b_is_planned_at_its_full_size(tmp_path: Path) -> None:
    plan = plan_conversion(write_folder(tmp_path / "c"), tmp_path / "out", ["Q4_K_M"])
    sizes = {file.label: file.bytes for file in plan.files if file.label != "vision"}
    sizes |= {file.file: file.bytes for file in plan.files}
    assert sizes["Q4_K_M"] == pytest.approx(4.37e9, rel=0.01)
    assert sizes["vision-float32.onnx.data"] == pytest.approx(4.63e9, rel=0.01)
    assert sizes["vision-int8.onnx.data"] < sizes["vision-float32.onnx.data"] / 2
    assert plan.memory < 12 * GIB


def test_the_base_model_has_no_chat_template(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", has_template=False)
    with (
        pytest.raises(CheckpointError, match=r"has no chat template: add a chat_template\.jinja"),
        open_model(folder, None),
    ):
        pass
