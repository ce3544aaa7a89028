"""Tiny random checkpoints of every family and layout that transformers has written, without torch.

The same options give the same bytes. transformers loads every one of them without missing or unexpected keys.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_families import (
    ARCHITECTURES,
    DECODERS,
    TOWERS,
    TinyArchitecture,
    TinyDecoder,
    TinyTower,
)
from tests.support.tiny_tokenizer import added_token

Layout = Literal["v4", "v4.52", "v5"]
Dtype = Literal["BF16", "F16", "F32"]
Decoder = Literal["qwen2", "qwen3", "llama", "llama3", "smollm", "mistral", "tekken"]

# Prefixes of decoder, output matrix, tower, projector and image_newline.
PREFIXES: dict[Layout, tuple[str, str, str, str, str]] = {
    "v4": (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "",
    ),
    "v4.52": (
        "model.language_model.",
        "lm_head.",
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
        "model.",
    ),
    "v5": (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.",
        "multi_modal_projector.",
        "",
    ),
}
MISTRAL_WINDOW = 4096  # MistralConfig's default
TORCH_DTYPE: dict[Dtype, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyCheckpoint:
    """Options of a checkpoint; ``write`` makes it.

    ``grids`` are rows and columns of tiles, of architectures that have such.
    """

    architecture: Literal["llava", "llava_next", "llava_onevision"] = "llava"
    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    max_crops: int = 9  # LLaVA-OneVision's

    layout: Layout = "v4"
    dtype: Dtype = "BF16"
    n_shards: int = 1
    seed: int = 0
    chat_template_in: Literal["tokenizer_config.json", "chat_template.json", "chat_template.jinja"] | None = (
        None
    )

    decoder: Decoder = "qwen2"
    tied: bool = False
    yarn: bool = False
    llama3_rope: bool = False
    hidden_size: int = 256
    intermediate_size: int = 512
    max_position_embeddings: int = 512
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    sliding_window: int | None = None  # Mistral's
    head_dim: int | None = None  # else the config class's default, which may be to divide the hidden size
    n_padding_rows: int = 11

    has_tower: bool = True  # else a decoder alone
    tower: Literal["clip", "siglip"] = "clip"
    activation: Literal["gelu", "quick_gelu", "gelu_pytorch_tanh"] = "gelu"
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 160
    vision_n_layers: int = 3
    vision_n_heads: int = 4
    image_size: int = 28
    patch_size: int = 14
    feature_layer: int | tuple[int, ...] = -2
    strategy: Literal["default", "full"] = "default"
    n_outliers: int = 0  # channels of each of the tower's norms that are 50 times the others
    projector_bias: bool = True
    pads_to_square: bool = False

    @property
    def vocab_size(self) -> int:
        """Rows of the embeddings."""
        return self._decoder.n_tokens() + self.n_padding_rows

    @property
    def _architecture(self) -> TinyArchitecture:
        return ARCHITECTURES[self.architecture]

    @property
    def _decoder(self) -> TinyDecoder:
        return DECODERS[self.decoder]

    @property
    def _tower(self) -> TinyTower:
        return TOWERS[self.tower]

    @property
    def has_tiles(self) -> bool:
        """Whether pictures are cut up."""
        return self.architecture != "llava"

    @property
    def is_v5(self) -> bool:
        """Whether config and processor files are version 5's."""
        return self.layout == "v5"

    def write(self, folder: Path) -> Path:
        """Write the checkpoint into ``folder``, which is created, and return it."""
        folder.mkdir(parents=True)
        files = {
            "config.json": self.config(),
            "generation_config.json": {
                "eos_token_id": [*map(self._decoder.token_id, self._decoder.eos_tokens)],
                "pad_token_id": self._decoder.token_id(self._decoder.pad_token),
            },
            "tokenizer.json": self._tokenizer_json(merges_as_pairs=self.is_v5),
            "tokenizer_config.json": self.tokenizer_config(),
            **self.processor_files(),
        }
        default = "chat_template.json" if self.has_tower else "tokenizer_config.json"
        template_in = self.chat_template_in or ("chat_template.jinja" if self.is_v5 else default)
        if template_in == "chat_template.jinja":
            (folder / template_in).write_text(self._decoder.chat_template)
        else:
            files.setdefault(template_in, {})["chat_template"] = self._decoder.chat_template
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1))
        self._write_weights(folder)
        return folder

    def config(self) -> dict[str, Any]:
        """config.json. Like transformers 4, it leaves out what is a config class's default."""
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.yarn:
            rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
        if self.llama3_rope:  # stretches some waves, leaves others, and is between for the rest
            rope = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        text: dict[str, Any] = {
            "architectures": [self._decoder.architecture],
            "model_type": self._decoder.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "eos_token_id": self._decoder.token_id(self._decoder.eos_tokens[0]),
        }
        if self.head_dim is not None:
            text["head_dim"] = self.head_dim
        if self._decoder.model_type == "mistral" and (self.is_v5 or self.sliding_window != MISTRAL_WINDOW):
            text["sliding_window"] = self.sliding_window
        vision: dict[str, Any] = {
            "model_type": self._tower.model_type,
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": self.vision_intermediate_size,
            "num_hidden_layers": self.vision_n_layers,
            "num_attention_heads": self.vision_n_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            **self._tower.config,
        }
        config: dict[str, Any] = {
            "architectures": [self._architecture.architecture],
            "model_type": self._architecture.model_type,
            "text_config": text,
            "vision_config": vision,
            "image_seq_length": self.n_image_tokens,
        }
        if self._architecture.has_pinpoints:
            config["image_grid_pinpoints"] = self._pinpoints
        feature_layer = (
            self.feature_layer if isinstance(self.feature_layer, int) else list(self.feature_layer)
        )
        if self.is_v5:
            text["rope_parameters"] = {"rope_theta": 1e6, **rope}
            text |= {"tie_word_embeddings": self.tied, "bos_token_id": self._bos_token_id}
            text |= {} if self.decoder == "qwen2" else {"head_dim": self.head_size}
            text |= {"use_sliding_window": False} if self.decoder in ("qwen2", "qwen3") else {}
            if not self.has_tower:
                return text | {"dtype": TORCH_DTYPE[self.dtype]}
            vision |= self._tower.defaults | {"hidden_act": self.activation}
            config |= {
                "dtype": TORCH_DTYPE[self.dtype],
                "image_token_index": self._decoder.token_id("<image>"),
                "multimodal_projector_bias": self.projector_bias,
                "projector_hidden_act": "gelu",
                "tie_word_embeddings": self.tied,
                "vision_feature_layer": feature_layer,
                "vision_feature_select_strategy": self.strategy,
            }
            if self.architecture == "llava_onevision":
                config["vision_aspect_ratio"] = self._vision_aspect_ratio
            return config
        text |= {"rope_theta": 1e6, "torch_dtype": TORCH_DTYPE[self.dtype]}
        if self.yarn:
            text["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
        if self.llama3_rope:
            text["rope_scaling"] = rope
        if not self.has_tower:
            return text | {"tie_word_embeddings": self.tied}
        config |= {
            "torch_dtype": TORCH_DTYPE[self.dtype],
            "image_token_index": self._decoder.token_id("<image>"),
        }
        not_default = (
            (text, "tie_word_embeddings", self.tied, False),
            (vision, "hidden_act", self.activation, self._tower.defaults["hidden_act"]),
            (config, "multimodal_projector_bias", self.projector_bias, True),
        )
        if self.architecture == "llava_onevision" and self.max_crops != 9:
            config["vision_aspect_ratio"] = self._vision_aspect_ratio
        for part, key, value, default in not_default:
            if value != default:
                part[key] = value
        given = {"vision_feature_layer": feature_layer, "vision_feature_select_strategy": self.strategy}
        defaults = self._architecture.defaults
        return config | {key: value for key, value in given.items() if value != defaults[key]}

    @property
    def _pinpoints(self) -> list[list[int]]:
        return [[rows * self.image_size, columns * self.image_size] for rows, columns in self.grids]

    @property
    def _vision_aspect_ratio(self) -> str:
        return f"anyres_max_{self.max_crops}"

    def _tokenizer_json(self, *, merges_as_pairs: bool) -> dict[str, Any]:
        tokenizer = self._decoder.tokenizer_json(merges_as_pairs=merges_as_pairs)
        tokenizer["added_tokens"] += [
            added_token(self._decoder.n_tokens() + number, token, special=True)
            for number, token in enumerate(self._architecture.added_tokens)
        ]
        return tokenizer

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        defaults: dict[str, Any]
        processor_class = {"processor_class": self._architecture.processor_class} if self.has_tower else {}
        if self.is_v5:
            # Version 5 gives Qwen2's tokenizer an unknown token.
            defaults = {"backend": "tokenizers", "add_prefix_space": None, "unk_token": "<|endoftext|>"}
            return defaults | self._decoder.tokenizer_config | processor_class
        tokens = self._tokenizer_json(merges_as_pairs=False)["added_tokens"]
        defaults = {
            "added_tokens_decoder": {str(token.pop("id")): token for token in tokens},
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "split_special_tokens": False,
            "unk_token": None,
        }
        return defaults | self._decoder.tokenizer_config | processor_class

    @property
    def _bos_token_id(self) -> int | None:
        bos_token = self._decoder.tokenizer_config["bos_token"]
        return None if bos_token is None else self._decoder.token_id(bos_token)

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """preprocessor_config.json and processor_config.json, or only the latter."""
        if not self.has_tower:
            return {}
        kind = "LlavaImageProcessor" if self.pads_to_square else "CLIPImageProcessor"
        side = self.image_size
        image_processor: dict[str, Any] = {
            "image_processor_type": kind,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": side, "width": side},
            **self._tower.image_processor,
            **self._architecture.image_processor,
        }
        if self._architecture.has_pinpoints:
            image_processor["image_grid_pinpoints"] = self._pinpoints
        if "do_center_crop" in image_processor:
            image_processor["crop_size"] = image_processor["size"]
            image_processor["size"] = {"shortest_edge": side}
        if self.pads_to_square:
            image_processor["do_pad"] = True
        processor = {
            "image_token": "<image>",
            "num_additional_image_tokens": int(self._tower.has_class_token),
            "patch_size": self.patch_size,
            "processor_class": self._architecture.processor_class,
            "vision_feature_select_strategy": self.strategy,
        }
        if self.architecture == "llava_onevision":
            processor |= {
                "num_image_tokens": self.n_image_tokens,
                "video_token": "<video>",
                "vision_aspect_ratio": self._vision_aspect_ratio,
            }
            del processor["num_additional_image_tokens"], processor["patch_size"]
        if self.is_v5:
            return {"processor_config.json": processor | {"image_processor": image_processor}}
        return {"preprocessor_config.json": image_processor, "processor_config.json": processor}

    @property
    def head_size(self) -> int:
        """Rows of the query projection that belong to one head."""
        return self.head_dim or self._decoder.head_dim or self.hidden_size // self.n_heads

    @property
    def n_image_tokens(self) -> int:
        """Tokens of one picture."""
        return self._n_positions - (self.strategy == "default")

    @property
    def _n_positions(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + self._tower.has_class_token

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """All weights by their names in this layout, float32, not yet rounded to ``dtype``."""
        rng = np.random.default_rng(self.seed)
        decoder, head, tower, projector, newline = PREFIXES[self.layout]
        if not self.has_tower:
            decoder, head = "model.", "lm_head."
        tensors: dict[str, NDArray[np.float32]] = {}

        def matrix(name: str, *shape: int) -> None:
            tensors[name] = (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)

        def vector(name: str, size: int, mean: float = 0.0) -> None:
            tensors[name] = (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)

        def linear(name: str, n_out: int, n_in: int, bias: bool = True) -> None:
            matrix(f"{name}.weight", n_out, n_in)
            if bias:
                vector(f"{name}.bias", n_out)

        def layer_norm(name: str, size: int) -> None:
            vector(f"{name}.weight", size, mean=1.0)
            vector(f"{name}.bias", size)

        n_embd, n_ff, head_size = self.hidden_size, self.intermediate_size, self.head_size
        n_q, n_kv = head_size * self.n_heads, head_size * self.n_kv_heads
        matrix(f"{decoder}embed_tokens.weight", self.vocab_size, n_embd)
        for bid in range(self.n_layers):
            layer = f"{decoder}layers.{bid}."
            vector(f"{layer}input_layernorm.weight", n_embd, mean=1.0)
            linear(f"{layer}self_attn.q_proj", n_q, n_embd, bias=self._decoder.has_bias)
            linear(f"{layer}self_attn.k_proj", n_kv, n_embd, bias=self._decoder.has_bias)
            linear(f"{layer}self_attn.v_proj", n_kv, n_embd, bias=self._decoder.has_bias)
            linear(f"{layer}self_attn.o_proj", n_embd, n_q, bias=False)
            if self._decoder.has_head_norms:
                vector(f"{layer}self_attn.q_norm.weight", head_size, mean=1.0)
                vector(f"{layer}self_attn.k_norm.weight", head_size, mean=1.0)
            vector(f"{layer}post_attention_layernorm.weight", n_embd, mean=1.0)
            linear(f"{layer}mlp.gate_proj", n_ff, n_embd, bias=False)
            linear(f"{layer}mlp.up_proj", n_ff, n_embd, bias=False)
            linear(f"{layer}mlp.down_proj", n_embd, n_ff, bias=False)
        vector(f"{decoder}norm.weight", n_embd, mean=1.0)
        if not self.tied:
            matrix(f"{head}weight", self.vocab_size, n_embd)
        if not self.has_tower:
            return tensors

        v_embd = self.vision_hidden_size
        if self._tower.has_class_token:
            vector(f"{tower}embeddings.class_embedding", v_embd)
        matrix(f"{tower}embeddings.patch_embedding.weight", v_embd, 3, self.patch_size, self.patch_size)
        if not self._tower.has_class_token:
            vector(f"{tower}embeddings.patch_embedding.bias", v_embd)
        matrix(f"{tower}embeddings.position_embedding.weight", self._n_positions, v_embd)
        if self._tower.has_class_token:
            layer_norm(f"{tower}pre_layrnorm", v_embd)
        for bid in range(self.vision_n_layers):
            layer = f"{tower}encoder.layers.{bid}."
            layer_norm(f"{layer}layer_norm1", v_embd)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}self_attn.{name}", v_embd, v_embd)
            layer_norm(f"{layer}layer_norm2", v_embd)
            linear(f"{layer}mlp.fc1", self.vision_intermediate_size, v_embd)
            linear(f"{layer}mlp.fc2", v_embd, self.vision_intermediate_size)
        layer_norm(f"{tower}post_layernorm", v_embd)
        if self.n_outliers:
            self._plant_outliers(tensors, tower)

        n_features = 1 if isinstance(self.feature_layer, int) else len(self.feature_layer)
        linear(f"{projector}linear_1", n_embd, v_embd * n_features, bias=self.projector_bias)
        linear(f"{projector}linear_2", n_embd, n_embd, bias=self.projector_bias)
        if self._architecture.has_pinpoints:
            vector(f"{newline}image_newline", n_embd)
        return tensors

    def _plant_outliers(self, tensors: dict[str, NDArray[np.float32]], tower: str) -> None:
        """As real towers have them: weights of the next layer make up for most of what is too large."""
        outliers = np.linspace(0, self.vision_hidden_size - 1, self.n_outliers, dtype=int)
        for bid in range(self.vision_n_layers):
            layer = f"{tower}encoder.layers.{bid}."
            for norm in ("layer_norm1", "layer_norm2"):
                for part in ("weight", "bias"):
                    tensors[f"{layer}{norm}.{part}"][outliers] *= 50
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"):
                tensors[f"{layer}{name}.weight"][:, outliers] /= 25

    def _write_weights(self, folder: Path) -> None:
        tensors = self.tensors()
        if self.n_shards == 1:
            write_safetensors(folder / "model.safetensors", tensors, self.dtype)
            return
        names = sorted(tensors)
        weight_map: dict[str, str] = {}
        for shard in range(self.n_shards):
            file_name = f"model-{shard + 1:05}-of-{self.n_shards:05}.safetensors"
            part = {name: tensors[name] for name in names[shard :: self.n_shards]}
            write_safetensors(folder / file_name, part, self.dtype)
            weight_map |= dict.fromkeys(part, file_name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tiny_onevision(**options: Any) -> TinyCheckpoint:
    """A LLaVA-OneVision as its config class has it, but for ``options``."""
    given: dict[str, Any] = {
        "architecture": "llava_onevision",
        "tower": "siglip",
        "activation": "gelu_pytorch_tanh",
        "feature_layer": -1,
        "strategy": "full",
        **options,
    }
    return TinyCheckpoint(**given)


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: Dtype) -> None:
    """Write ``tensors`` rounded to ``dtype``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs = []
    end = 0
    for name, tensor in tensors.items():
        blob = encode(tensor, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(blob)],
        }
        end += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def encode(tensor: NDArray[np.float32], dtype: Dtype) -> bytes:
    """``tensor`` as little-endian ``dtype``, rounded to nearest even."""
    if dtype == "F32":
        return tensor.astype("<f4").tobytes()
    if dtype == "F16":
        return tensor.astype("<f2").tobytes()
    bits = tensor.astype("<f4").view("<u4")
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return rounded.astype("<u2").tobytes()
