"""Folders with the published config files of real checkpoints, version 4's, and weights of the true shapes.

The weight files are sparse: they have a true header and the true length, and zeros for weights.
"""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import ImageSpec, PinpointTiles, Size
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.vision.blocks import n_tokens
from acestep_gguf.vision.tiling import tiling_of
from tests.support import tiny_sentencepiece, tiny_tokenizer
from tests.support.tiny_families import DECODERS

PUBLISHED = Path(__file__).parent / "published_configs"

LLAVA_1_5 = "llava-1.5-7b-hf"
INTERLEAVE = "llava-interleave-qwen-0.5b-hf"
NEXT_VICUNA = "llava-v1.6-vicuna-7b-hf"
NEXT_MISTRAL = "llava-v1.6-mistral-7b-hf"
ONEVISION = "llava-onevision-qwen2-7b-ov-hf"
# What text_config leaves out: defaults of its config class.
OMITTED = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
QWEN2_TOKENS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151646}


def with_fillers(tokenizer: dict[str, Any], n_tokens: int, added: dict[str, int]) -> dict[str, Any]:
    """The tiny tokenizer with as many tokens as a published one, and its added tokens."""
    vocab = tokenizer["model"]["vocab"]
    for token_id in range(len(vocab), n_tokens):
        vocab[f"\ue000{token_id}"] = token_id
    kept = [token for token in tokenizer["added_tokens"] if vocab.get(token["content"]) == token["id"]]
    entry = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] = [
        *kept,
        *(entry | {"content": token, "id": token_id} for token, token_id in added.items()),
    ]
    return tokenizer


def decoder_shapes(text: dict[str, Any], *, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    n_embd, n_ff, n_vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    n_kv = (
        n_embd // text["num_attention_heads"] * text.get("num_key_value_heads", text["num_attention_heads"])
    )
    yield "language_model.model.embed_tokens.weight", (n_vocab, n_embd)
    for bid in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{bid}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (n_embd,)
        for name in "qkvo":
            n_rows = n_kv if name in "kv" else n_embd
            yield f"{layer}self_attn.{name}_proj.weight", (n_rows, n_embd)
            if bias and name != "o":
                yield f"{layer}self_attn.{name}_proj.bias", (n_rows,)
        for name, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            yield f"{layer}mlp.{name}_proj.weight", shape
    yield "language_model.model.norm.weight", (n_embd,)
    if not text.get("tie_word_embeddings"):
        yield "language_model.lm_head.weight", (n_vocab, n_embd)


def tower_shapes(
    vision: dict[str, Any], n_embd: int, *, is_clip: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower, hidden, n_ff = "vision_tower.vision_model.", vision["hidden_size"], vision["intermediate_size"]
    n_patches = (vision["image_size"] // vision["patch_size"]) ** 2
    yield f"{tower}embeddings.patch_embedding.weight", (hidden, 3, vision["patch_size"], vision["patch_size"])
    yield f"{tower}embeddings.position_embedding.weight", (n_patches + is_clip, hidden)
    if is_clip:
        yield f"{tower}embeddings.class_embedding", (hidden,)
    else:
        yield f"{tower}embeddings.patch_embedding.bias", (hidden,)
    layers = [f"encoder.layers.{bid}." for bid in range(vision["num_hidden_layers"])]
    norms = [f"{layer}layer_norm{i}" for layer in layers for i in (1, 2)] + ["post_layernorm"]
    for norm in norms + ["pre_layrnorm"] * is_clip:
        yield f"{tower}{norm}.weight", (hidden,)
        yield f"{tower}{norm}.bias", (hidden,)
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (n_ff, hidden), "mlp.fc2": (hidden, n_ff)}
    for layer in layers:
        for name, shape in shapes.items():
            yield f"{tower}{layer}{name}.weight", shape
            yield f"{tower}{layer}{name}.bias", shape[:1]
    for name, shape in (("linear_1", (n_embd, hidden)), ("linear_2", (n_embd, n_embd))):
        yield f"multi_modal_projector.{name}.weight", shape
        yield f"multi_modal_projector.{name}.bias", shape[:1]


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_folder(folder: Path, name: str) -> Path:
    """A version-4 folder around the published config.json and preprocessor_config.json of ``name``."""
    folder.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (folder / file).write_text((PUBLISHED / f"{name}.{file}").read_text())
    config = json.loads((folder / "config.json").read_text())
    text = OMITTED | config["text_config"]
    family = DECODERS[text["model_type"]]
    if text["model_type"] == "qwen2":
        added = QWEN2_TOKENS | ({"<video>": 151647} if name == ONEVISION else {})
        tokenizer = with_fillers(tiny_tokenizer.tokenizer_json(merges_as_pairs=False), 151643, added)
    else:
        tokenizer = with_fillers(
            tiny_sentencepiece.tokenizer_json(), 32000, {"<image>": 32000, "<pad>": 32001}
        )
    if name not in (LLAVA_1_5, NEXT_VICUNA):
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": family.chat_template}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(family.tokenizer_config))
    shapes = dict(decoder_shapes(text, bias=family.has_bias))
    is_clip = config["vision_config"]["model_type"] == "clip_vision_model"
    shapes |= dict(tower_shapes(config["vision_config"], text["hidden_size"], is_clip=is_clip))
    if name in (NEXT_VICUNA, NEXT_MISTRAL, ONEVISION):
        shapes["image_newline"] = (text["hidden_size"],)
    write_sparse(
        folder / "model.safetensors", shapes, {"float16": "F16", "bfloat16": "BF16"}[config["torch_dtype"]]
    )
    return folder


def read(folder: Path) -> CheckpointModel:
    with open_model(folder, None) as model:
        return model


def test_llava_1_5(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", LLAVA_1_5)
    model = read(folder)
    assert model.source.architecture == "LlavaForConditionalGeneration"
    assert (model.source.vision_model_type, model.source.text_model_type) == ("clip_vision_model", "llama")
    assert model.size_label == "6.7B"
    assert model.image == ImageSpec(
        pad_to_square=None,
        resize="shortest_edge",
        resize_to=Size(height=336, width=336),
        resample="bicubic",
        center_crop=Size(height=336, width=336),
        rescale_factor=0.00392156862745098,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        size=Size(height=336, width=336),
        n_image_tokens=576,
        n_embd=4096,
    )
    assert (model.prompt.image_token, model.prompt.stop_tokens) == ("<image>", ("</s>",))
    assert (model.prompt.add_bos, model.prompt.space_prefix) == (True, "first")
    assert "ASSISTANT:" in model.prompt.chat_template  # the folder has none of its own
    assert len(model.tensors.decoder) == 32 * 9 + 3
    assert max(int(name.split(".")[2]) for name in model.tensors.tower if ".blk." in name) == 22


def test_llava_interleave(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", INTERLEAVE)
    model = read(folder)
    assert (model.source.vision_model_type, model.source.text_model_type) == ("siglip_vision_model", "qwen2")
    assert model.size_label == "464M"
    assert model.image == ImageSpec(
        pad_to_square=None,
        resize="exact",
        resize_to=Size(height=384, width=384),
        resample="bicubic",
        center_crop=None,
        rescale_factor=0.00392156862745098,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        size=Size(height=384, width=384),
        n_image_tokens=729,
        n_embd=1024,
    )
    assert (model.prompt.add_bos, model.prompt.space_prefix) == (False, "never")
    assert max(int(name.split(".")[2]) for name in model.tensors.tower if ".blk." in name) == 25
    assert model.tensors.tower["v.blk.0.ffn_up.weight"].shape == (4304, 1152)


NEXT_IMAGE = ImageSpec(
    pad_to_square=None,
    resize="exact",
    resize_to=Size(height=336, width=336),
    resample="bicubic",
    center_crop=None,
    rescale_factor=0.00392156862745098,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    size=Size(height=336, width=336),
    n_image_tokens=576,
    n_embd=4096,
    tiles=PinpointTiles(grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))),
)


@pytest.mark.parametrize(
    ("name", "decoder", "label"), [(NEXT_VICUNA, "llama", "6.7B"), (NEXT_MISTRAL, "mistral", "7.2B")]
)
def test_llava_next(tmp_path: Path, name: str, decoder: str, label: str) -> None:
    model = read(write_folder(tmp_path / "c", name))
    assert model.source.architecture == "LlavaNextForConditionalGeneration"
    assert (model.source.vision_model_type, model.source.text_model_type) == ("clip_vision_model", decoder)
    assert (model.size_label, model.image) == (label, NEXT_IMAGE)
    assert model.tensors.tower["model.image_newline"].shape == (4096,)
    # Mistral 7B v0.2 has no window any more.
    assert model.config.text_config.context_length == {"llama": 4096, "mistral": 32768}[decoder]
    assert tiling_of(NEXT_IMAGE).most() == (5, 2928)
    assert ("ASSISTANT:" in model.prompt.chat_template) == (name == NEXT_VICUNA)


def test_llava_onevision(tmp_path: Path) -> None:
    model = read(write_folder(tmp_path / "c", ONEVISION))
    assert model.source.architecture == "LlavaOnevisionForConditionalGeneration"
    assert (model.source.vision_model_type, model.source.text_model_type) == ("siglip_vision_model", "qwen2")
    assert model.size_label == "7.6B"
    assert model.image is not None
    assert (model.image.n_image_tokens, model.image.n_embd, model.image.resize) == (729, 3584, "exact")
    assert isinstance(model.image.tiles, PinpointTiles)
    assert (model.image.tiles.max_crops, model.image.tiles.square_fill) == (9, (127, 127, 127))
    assert len(model.image.tiles.grids) == 36
    assert n_tokens(tiling_of(model.image, n_pictures=2).blocks((640, 480))) == 730
    assert model.tensors.tower["model.image_newline"].shape == (3584,)
    assert max(int(name.split(".")[2]) for name in model.tensors.tower if ".blk." in name) == 25
    assert model.prompt.control_tokens["<video>"] == 151647


@pytest.mark.parametrize(("ftype", "bits"), [("Q4_K_M", 4.85), ("Q8_0", 8.5)])
def test_llava_1_5_is_planned_at_its_full_size(tmp_path: Path, ftype: Ftype, bits: float) -> None:
    folder = write_folder(tmp_path / "c", LLAVA_1_5)
    plan = plan_conversion(folder, tmp_path / "out", [ftype])
    decoder = next(file for file in plan.files if file.label == ftype)
    assert decoder.bits_per_weight == pytest.approx(bits, abs=0.02)
