"""Pixtral-12B from the published facts, with holes of the weights' true shapes and a made-up vocabulary."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import AnySize, Size
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.vision.tiling import n_positions, tiling_of
from tests.convert.test_published_folders import PUBLISHED, write_sparse
from tests.support import tiny_tekken
from tests.support.tiny_families import DECODERS
from tests.support.tiny_pixtral import IMAGE, IMAGE_END, ROW_END
from tests.support.tiny_tokenizer import added_token

GIB = 2**30
N_VOCAB = 131072
NAMED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", IMAGE, "<pad>", ROW_END, IMAGE_END, "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
SPECIAL_TOKENS = (*NAMED, *(f"<SPECIAL_{number}>" for number in range(len(NAMED), 1000)))
DEFAULTS = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}


def tokenizer_json() -> dict[str, Any]:
    """The tiny tokenizer with the published one's special tokens and as many others."""
    tokenizer = tiny_tekken.tokenizer_json(merges_as_pairs=False)
    tokens = [*SPECIAL_TOKENS, *tiny_tekken.vocabulary()]
    # Made of no two tokens, so there are no merges for them.
    tokens += [f"Ā{token_id:06}" for token_id in range(len(tokens), N_VOCAB)]
    tokenizer["model"]["vocab"] = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer["added_tokens"] = [
        added_token(token_id, token, special=True) for token_id, token in enumerate(SPECIAL_TOKENS)
    ]
    return tokenizer


def write_folder(folder: Path, name: str = "pixtral-12b") -> Path:
    """A version-4 folder around the published config."""
    folder.mkdir()
    config = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    family = DECODERS["tekken"]
    files = {
        "config.json": config,
        "preprocessor_config.json": json.loads((PUBLISHED / f"{name}.preprocessor_config.json").read_text()),
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": family.tokenizer_config,
        "chat_template.json": {"chat_template": family.chat_template.replace("<image>\\n", IMAGE)},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    text, vision = config["text_config"], DEFAULTS | config["vision_config"]
    n_embd, n_ff, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    n_q, n_kv = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (N_VOCAB, n_embd),
        "language_model.model.norm.weight": (n_embd,),
        "language_model.lm_head.weight": (N_VOCAB, n_embd),
        "vision_tower.patch_conv.weight": (vision["hidden_size"], 3, 16, 16),
        "vision_tower.ln_pre.weight": (vision["hidden_size"],),
    }
    for bid in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{bid}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (n_embd,)
        for part, shape in (
            ("self_attn.q", (n_q, n_embd)), ("self_attn.k", (n_kv, n_embd)), ("self_attn.v", (n_kv, n_embd)),
            ("self_attn.o", (n_embd, n_q)), ("mlp.gate", (n_ff, n_embd)), ("mlp.up", (n_ff, n_embd)),
            ("mlp.down", (n_embd, n_ff)),
        ):  # fmt: skip
            shapes[f"{layer}{part}_proj.weight"] = shape
    hidden, v_ff = vision["hidden_size"], vision["intermediate_size"]
    for bid in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.transformer.layers.{bid}."
        for norm in ("attention_norm", "ffn_norm"):
            shapes[f"{layer}{norm}.weight"] = (hidden,)
        for projection in "qkvo":
            shapes[f"{layer}attention.{projection}_proj.weight"] = (hidden, hidden)
        for part, shape in (("gate", (v_ff, hidden)), ("up", (v_ff, hidden)), ("down", (hidden, v_ff))):
            shapes[f"{layer}feed_forward.{part}_proj.weight"] = shape
    for number, n_in in ((1, hidden), (2, n_embd)):
        shapes[f"multi_modal_projector.linear_{number}.weight"] = (n_embd, n_in)
        shapes[f"multi_modal_projector.linear_{number}.bias"] = (n_embd,)
    write_sparse(folder / "model.safetensors", shapes, "BF16")
    return folder


def test_pixtral_12b(tmp_path: Path) -> None:
    with open_model(write_folder(tmp_path / "c"), None) as model:
        assert (model.source.vision_model_type, model.source.text_model_type) == ("pixtral", "mistral")
        assert model.size_label == "12B"
        image = model.image
        tower = model.tensors.tower
        assert tower["model.image_newline"].shape == (5120,)
        # 0.4B parameters, without the table of positions that there is not.
        assert sum(prod(tensor.shape) for tensor in tower.values()) == pytest.approx(0.435e9, rel=0.02)
        assert (model.prompt.image_token, model.prompt.image_end) == (IMAGE, IMAGE_END)
        assert model.prompt.control_tokens[ROW_END] == 12
        assert (model.vocabulary.pre, model.prompt.add_bos) == ("tekken", False)
    assert image is not None
    assert (image.size, image.tiles, image.n_image_tokens) == (
        Size(height=1024, width=1024),
        AnySize(step=16),
        4096,
    )
    assert n_positions(tiling_of(image), (640, 480)) == 30 * 41 - 1
    assert tiling_of(image).most() == (1, 4159)


def test_pixtral_12b_is_planned_at_its_full_size(tmp_path: Path) -> None:
    plan = plan_conversion(write_folder(tmp_path / "c"), tmp_path / "out", ["Q4_K_M"])
    decoder = next(file for file in plan.files if file.label == "Q4_K_M")
    assert decoder.bytes == pytest.approx(7.5e9, rel=0.03)
    assert plan.memory < 8 * GIB
