"""Write a random checkpoint of a true shape: a Qwen2.5 decoder behind a CLIP tower, ViT-H/14 at 448 px.

    python -m scripts.synthetic.checkpoint --shape 1.5b /tmp/synthetic-1.5b
    python -m scripts.synthetic.checkpoint --shape 32b --sparse /tmp/synthetic-32b
    python -m scripts.synthetic.checkpoint --shape 0.5b --decoder-only --vocabulary qwen2.gguf /tmp/decoder

Weights are seeded: each matrix repeats 64 random rows of standard deviation 1/sqrt(row length), or with
--independent-rows never repeats them; the memory needed is that of 64 rows. With --sparse they are holes,
which read as zeros and take no disk. With --outliers the tower has the outlier channels of real ones.
The vocabulary has Qwen2's size; its merges are made up, unless --vocabulary names a GGUF file to take
them from (llama.cpp's source has models/ggml-vocab-qwen2.gguf, and its converter accepts no other).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

SHARD_BYTES = 4 * 2**30
PATTERN_ROWS = 64
BASE_TOKENS = 151643
SPECIAL_TOKENS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151646}
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The published Qwen2.5 shapes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool


@dataclass(frozen=True)
class VisionShape:
    """Shapes of CLIP towers."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    patch: int
    image: int


SHAPES = {
    "tiny": Shape(256, 2, 4, 2, 512, 151936, tied=True),
    "0.5b": Shape(896, 24, 14, 2, 4864, 151936, tied=True),
    "1.5b": Shape(1536, 28, 12, 2, 8960, 151936, tied=True),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, tied=False),
    "32b": Shape(5120, 64, 40, 8, 27648, 152064, tied=False),
}
VISION_SHAPES = {
    "tiny": VisionShape(128, 3, 4, 256, 14, 112),
    "vit-h-14-448": VisionShape(1280, 32, 16, 5120, 14, 448),
}
# So many channels of each norm in a tower are so many times larger, and what reads them undoes half of it.
OUTLIER_CHANNELS, OUTLIER_FACTOR, OUTLIER_DIVISOR = 8, 50.0, 25.0
OUTLIER_NORMS = {"layer_norm1.weight", "layer_norm2.weight"}
OUTLIER_READERS = {
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "mlp.fc1.weight",
}

Tensors = Iterator[tuple[str, tuple[int, ...]]]


def decoder_tensors(shape: Shape, prefix: str) -> Tensors:
    kv = shape.hidden // shape.heads * shape.kv_heads
    yield f"{prefix}model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for i in range(shape.layers):
        layer = f"{prefix}model.layers.{i}."
        for name, rows in (("q_proj", shape.hidden), ("k_proj", kv), ("v_proj", kv)):
            yield f"{layer}self_attn.{name}.weight", (rows, shape.hidden)
            yield f"{layer}self_attn.{name}.bias", (rows,)
        yield f"{layer}self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{layer}mlp.gate_proj.weight", (shape.mlp, shape.hidden)
        yield f"{layer}mlp.up_proj.weight", (shape.mlp, shape.hidden)
        yield f"{layer}mlp.down_proj.weight", (shape.hidden, shape.mlp)
        yield f"{layer}input_layernorm.weight", (shape.hidden,)
        yield f"{layer}post_attention_layernorm.weight", (shape.hidden,)
    yield f"{prefix}model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield f"{prefix}lm_head.weight", (shape.vocabulary, shape.hidden)


def vision_tensors(vision: VisionShape, n_embd: int) -> Tensors:
    hidden, mlp, patch = vision.hidden, vision.mlp, vision.patch
    tower = "vision_tower.vision_model."
    yield f"{tower}embeddings.class_embedding", (hidden,)
    yield f"{tower}embeddings.patch_embedding.weight", (hidden, 3, patch, patch)
    yield f"{tower}embeddings.position_embedding.weight", ((vision.image // patch) ** 2 + 1, hidden)
    norms = [f"{tower}pre_layrnorm", f"{tower}post_layernorm"]
    for i in range(vision.layers):
        layer = f"{tower}encoder.layers.{i}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{name}", hidden, hidden)
        yield from linear(f"{layer}mlp.fc1", mlp, hidden)
        yield from linear(f"{layer}mlp.fc2", hidden, mlp)
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
        yield f"{norm}.bias", (hidden,)
    yield from linear("multi_modal_projector.linear_1", n_embd, hidden)
    yield from linear("multi_modal_projector.linear_2", n_embd, n_embd)


def linear(name: str, rows: int, row_length: int) -> Tensors:
    yield f"{name}.weight", (rows, row_length)
    yield f"{name}.bias", (rows,)


def write_weights(folder: Path, tensors: Tensors, rows: Rows, *, sparse: bool = False) -> None:
    """Shards of bfloat16 safetensors and their index, tensor after tensor."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, dims in tensors:
        if shards[-1] and sum(2 * math.prod(d) for _, d in shards[-1]) + 2 * math.prod(dims) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, dims))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys((name for name, _ in shard), file_name))
        write_safetensors(folder / file_name, shard, rows, sparse=sparse)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def write_safetensors(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], rows: Rows, *, sparse: bool
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in tensors:
        begin, end = end, end + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        if sparse:
            file.truncate(8 + len(encoded) + end)
            return
        for number, (name, dims) in enumerate(tensors):
            for block in rows.blocks(name, dims, seed=number):
                file.write(block.tobytes())


@dataclass(frozen=True)
class Rows:
    """Bfloat16 rows of random tensors: norms are ones, biases small, matrices repeat PATTERN_ROWS rows.

    ``outliers`` are channels of the tower's norms that are larger than the others.
    """

    independent: bool = False
    outliers: NDArray[np.intp] | None = None

    def blocks(self, name: str, dims: tuple[int, ...], seed: int) -> Iterator[NDArray[np.uint16]]:
        rows, row_length = (dims[0], math.prod(dims[1:])) if len(dims) > 1 else (1, dims[0])
        part = name.partition("encoder.layers.")[2].partition(".")[2]
        if len(dims) == 1:
            values = np.full(row_length, 1.0 if name.endswith("weight") else 0.01, np.float32)
            if self.outliers is not None and part in OUTLIER_NORMS:
                values[self.outliers] *= OUTLIER_FACTOR
            yield bfloat16(values)
            return
        generator = np.random.default_rng(seed)
        block = np.empty((0, row_length), np.uint16)
        for start in range(0, rows, PATTERN_ROWS):
            if self.independent or start == 0:
                values = generator.standard_normal((PATTERN_ROWS, row_length), np.float32)
                values /= math.sqrt(row_length)
                if self.outliers is not None and part in OUTLIER_READERS:
                    values[:, self.outliers] /= OUTLIER_DIVISOR
                block = bfloat16(values)
            yield block[: min(PATTERN_ROWS, rows - start)]


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def vocabulary(source: Path | None) -> tuple[dict[str, int], list[list[str]]]:
    """Token → id and merges: made up at Qwen2's size, or those of a GGUF file."""
    if source is not None:
        fields = GGUFReader(source).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()[:BASE_TOKENS]
        merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"].contents()]
        return {token: i for i, token in enumerate(tokens)}, merges
    letters = byte_letters()
    pairs = list(itertools.product(letters, letters))
    triples = itertools.product((a + b for a, b in pairs), letters)
    merges = [*map(list, pairs), *map(list, itertools.islice(triples, BASE_TOKENS - 256 - len(pairs)))]
    tokens = [*letters, *("".join(merge) for merge in merges)]
    return {token: i for i, token in enumerate(tokens)}, merges


def byte_letters() -> list[str]:
    """The letters that byte-level BPE writes for the 256 bytes (GPT-2's table)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    codes = {byte: byte for byte in visible} | {byte: 256 + i for i, byte in enumerate(hidden)}
    return [chr(codes[byte]) for byte in range(256)]


def tokenizer_json(source: Path | None) -> dict[str, Any]:
    tokens, merges = vocabulary(source)
    added = [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, token_id in SPECIAL_TOKENS.items()
    ]
    split = {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": tokens,
            "merges": merges,
        },
    }


def text_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "use_sliding_window": False,
    }


def llava_config(shape: Shape, vision: VisionShape) -> dict[str, Any]:
    """The described model: 128K of context is YaRN over 32K."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    text = text_config(shape) | {"rope_scaling": yarn, "max_position_embeddings": 131072}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": SPECIAL_TOKENS["<image>"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu",
            "hidden_size": vision.hidden,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "patch_size": vision.patch,
            "image_size": vision.image,
            "projection_dim": 1024,
        },
    }


def preprocessor_config(vision: VisionShape) -> dict[str, Any]:
    size = vision.image
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--vision", choices=VISION_SHAPES, default="vit-h-14-448")
    parser.add_argument("--outliers", action="store_true", help="outlier channels in the tower")
    parser.add_argument("--independent-rows", action="store_true", help="no row repeats another")
    parser.add_argument("--sparse", action="store_true", help="holes instead of random weights")
    parser.add_argument("--decoder-only", action="store_true", help="a bare Qwen2ForCausalLM")
    parser.add_argument("--vocabulary", type=Path, help="GGUF file to take tokens and merges from")
    arguments = parser.parse_args()

    folder, shape, vision = arguments.folder, SHAPES[arguments.shape], VISION_SHAPES[arguments.vision]
    folder.mkdir(parents=True)
    if arguments.decoder_only:
        config, tensors = text_config(shape), decoder_tensors(shape, "")
    else:
        config = llava_config(shape, vision)
        tensors = itertools.chain(
            vision_tensors(vision, shape.hidden), decoder_tensors(shape, "language_model.")
        )
        write_json(folder / "preprocessor_config.json", preprocessor_config(vision))
        write_json(folder / "processor_config.json", {"patch_size": 14, "image_token": "<image>"})
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer_json(arguments.vocabulary))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    channels = np.random.default_rng(0).choice(vision.hidden, OUTLIER_CHANNELS, replace=False)
    rows = Rows(arguments.independent_rows, channels if arguments.outliers else None)
    write_weights(folder, tensors, rows, sparse=arguments.sparse)


if __name__ == "__main__":
    main()
