"""Tiny random InternVL checkpoints, in transformers' layouts and in InternVL's own, without torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import TORCH_DTYPE, Layout, TinyCheckpoint
from tests.support.tiny_families import TinyDecoder
from tests.support.tiny_tokenizer import added_token

Floats = NDArray[np.float32]

IMAGE_TOKEN, IMAGE_BEGIN, IMAGE_END, VIDEO_TOKEN = "<IMG_CONTEXT>", "<img>", "</img>", "<video>"
# They take the place of padding rows.
ADDED_TOKENS = (IMAGE_BEGIN, IMAGE_END, IMAGE_TOKEN, VIDEO_TOKEN)

# Prefixes of decoder, output matrix, tower and projector.
PREFIXES: dict[Layout, tuple[str, str, str, str]] = {
    "v4": ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector."),
    "v4.52": ("model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector."),
    "v5": (
        "model.language_model.model.",
        "language_model.lm_head.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
}
ORIGINAL_PREFIXES = ("language_model.model.", "language_model.lm_head.", "vision_model.", "mlp1.")

# Names in InternVL's own code, where transformers has others; of the parts of a layer, and outside of layers.
ORIGINAL_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
ORIGINAL_NAMES = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "layer_norm": "0",
    "linear_1": "1",
    "linear_2": "3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyInternVL(TinyCheckpoint):
    """Options of a checkpoint; ``write`` makes it. ``is_original``: in the layout of InternVL's own code."""

    is_original: bool = False
    has_biases: bool = False  # of queries, keys and values
    has_qk_norm: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    feature_layer: int | tuple[int, ...] = -1
    image_size: int = 56
    min_patches: int = 1
    max_patches: int = 12
    max_position_embeddings: int = 2048
    rope: dict[str, Any] | None = None
    has_tokenizer_json: bool = True  # else the older files of Qwen2's tokenizer

    @property
    def has_tiles(self) -> bool:
        """Whether pictures are cut up."""
        return True

    @property
    def _decoder(self) -> TinyDecoder:
        decoder = super(TinyInternVL, self)._decoder
        return replace(
            decoder,
            chat_template=decoder.chat_template.replace("<image>", IMAGE_TOKEN),
            tokenizer_json=self._tokenizer_json,
            token_id=self._token_id,
        )

    def _token_id(self, token: str) -> int:
        decoder = super(TinyInternVL, self)._decoder
        if token in ADDED_TOKENS:
            return decoder.n_tokens() + ADDED_TOKENS.index(token)
        return decoder.token_id(token)

    def _tokenizer_json(self, *, merges_as_pairs: bool) -> dict[str, Any]:
        tokenizer = super(TinyInternVL, self)._decoder.tokenizer_json(merges_as_pairs=merges_as_pairs)
        tokenizer["added_tokens"] += [
            added_token(self._token_id(token), token, special=True) for token in ADDED_TOKENS
        ]
        return tokenizer

    def write(self, folder: Path) -> Path:
        """Write the checkpoint into ``folder``, which is created, and return it."""
        super(TinyInternVL, self).write(folder)
        if not self.has_tokenizer_json:
            tokenizer = self._tokenizer_json(merges_as_pairs=False)
            (folder / "tokenizer.json").unlink()
            (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
            merges = ["#version: 0.2", *tokenizer["model"]["merges"], ""]
            (folder / "merges.txt").write_text("\n".join(merges))
            added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
            (folder / "added_tokens.json").write_text(json.dumps(added))
        return folder

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, in which transformers' processor finds the tokens around a picture."""
        named = {
            "start_image_token": IMAGE_BEGIN,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_TOKEN,
            "video_token": VIDEO_TOKEN,
        }
        config = super(TinyInternVL, self).tokenizer_config() | {"processor_class": "InternVLProcessor"}
        return config if self.is_original else config | {"extra_special_tokens": named}

    def config(self) -> dict[str, Any]:
        """config.json. Like transformers 4, it leaves out what is a config class's default."""
        text = TinyCheckpoint.config(self._decoder_alone)
        if self.rope is not None:
            text["rope_scaling"] = self.rope
        vision = {
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": self.vision_intermediate_size,
            "num_hidden_layers": self.vision_n_layers,
            "num_attention_heads": self.vision_n_heads,
        }
        if self.is_original:
            return self._original_config(text, vision)
        config = {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "downsample_ratio": 0.5,
            "image_token_id": self._token_id(IMAGE_TOKEN),
            "image_seq_length": self.n_image_tokens,
            "text_config": text,
            "vision_config": vision
            | {
                "model_type": "internvl_vision",
                "image_size": [self.image_size] * 2,
                "patch_size": [self.patch_size] * 2,
                "attention_bias": self.has_biases,
                "norm_type": self.norm_type,
                "use_qk_norm": self.has_qk_norm,
            },
        }
        if self.is_v5:
            return config | {"dtype": TORCH_DTYPE[self.dtype], "tie_word_embeddings": self.tied}
        return config | {"torch_dtype": TORCH_DTYPE[self.dtype]}

    def _original_config(self, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
        return {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": self.image_size,
            "llm_config": text,
            "max_dynamic_patch": self.max_patches,
            "min_dynamic_patch": self.min_patches,
            "pad2square": False,
            "ps_version": "v2",
            "select_layer": self.feature_layer,
            "system_message": None,
            "template": "internvl2_5",
            "tie_word_embeddings": self.tied,
            "torch_dtype": TORCH_DTYPE[self.dtype],
            "use_thumbnail": True,
            "vision_config": vision
            | {
                "model_type": "intern_vit_6b",
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "norm_type": self.norm_type,
                "qk_normalization": self.has_qk_norm,
                "qkv_bias": self.has_biases,
            },
        }

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """As transformers writes them; in the original layout, the file that InternVL's own code ignores."""
        if self.is_original:
            return {"preprocessor_config.json": {"feature_extractor_type": "CLIPFeatureExtractor"}}
        image_processor = {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "max_patches": self.max_patches,
            "min_patches": self.min_patches,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": self.image_size, "width": self.image_size},
        }
        processor = {"image_seq_length": self.n_image_tokens, "processor_class": "InternVLProcessor"}
        if self.is_v5:
            return {"processor_config.json": processor | {"image_processor": image_processor}}
        return {"preprocessor_config.json": image_processor, "processor_config.json": processor}

    @property
    def n_image_tokens(self) -> int:
        """Tokens of one tile."""
        return (self.image_size // self.patch_size // 2) ** 2

    @property
    def _decoder_alone(self) -> "TinyInternVL":
        return replace(self, has_tower=False)

    def tensors(self) -> dict[str, Floats]:
        """All weights by their names in this layout, float32, not yet rounded to ``dtype``."""
        decoder, head, tower, projector = ORIGINAL_PREFIXES if self.is_original else PREFIXES[self.layout]
        tensors = {
            name.replace("model.", decoder, 1).replace("lm_head.", head, 1): tensor
            for name, tensor in TinyCheckpoint.tensors(self._decoder_alone).items()
        }
        as_named = _as_original if self.is_original else iter
        tensors |= {tower + name: tensor for name, tensor in as_named(self._tower_tensors())}
        return tensors | {projector + name: tensor for name, tensor in as_named(self._projector_tensors())}

    def _tower_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 1))
        n_embd, n_ff, patch = self.vision_hidden_size, self.vision_intermediate_size, self.patch_size
        n_positions = (self.image_size // patch) ** 2 + 1
        yield "embeddings.cls_token", _vector(rng, n_embd).reshape(1, 1, -1)
        yield "embeddings.patch_embeddings.projection.weight", _matrix(rng, n_embd, 3, patch, patch)
        yield "embeddings.patch_embeddings.projection.bias", _vector(rng, n_embd)
        yield "embeddings.position_embeddings", _matrix(rng, 1, n_positions, n_embd) * 4
        for bid in range(self.vision_n_layers):
            layer = f"encoder.layer.{bid}."
            for norm, scale in (("layernorm_before", "lambda_1"), ("layernorm_after", "lambda_2")):
                yield f"{layer}{norm}.weight", _vector(rng, n_embd, mean=1.0)
                if self.norm_type == "layer_norm":
                    yield f"{layer}{norm}.bias", _vector(rng, n_embd)
                yield f"{layer}{scale}", _vector(rng, n_embd, mean=0.5)
            for name in "qkv":
                yield f"{layer}attention.{name}_proj.weight", _matrix(rng, n_embd, n_embd)
                if self.has_biases:
                    yield f"{layer}attention.{name}_proj.bias", _vector(rng, n_embd)
                if self.has_qk_norm and name != "v":
                    yield f"{layer}attention.{name}_norm.weight", _vector(rng, n_embd, mean=1.0)
            linears = {"attention.projection_layer": (n_embd, n_embd)}
            linears |= {"mlp.fc1": (n_ff, n_embd), "mlp.fc2": (n_embd, n_ff)}
            for name, shape in linears.items():
                yield f"{layer}{name}.weight", _matrix(rng, *shape)
                yield f"{layer}{name}.bias", _vector(rng, shape[0])

    def _projector_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 2))
        n_features, n_embd = 4 * self.vision_hidden_size, self.hidden_size
        yield "layer_norm.weight", _vector(rng, n_features, mean=1.0)
        yield "layer_norm.bias", _vector(rng, n_features)
        for name, n_in in (("linear_1", n_features), ("linear_2", n_embd)):
            yield f"{name}.weight", _matrix(rng, n_embd, n_in)
            yield f"{name}.bias", _vector(rng, n_embd)


def _matrix(rng: np.random.Generator, *shape: int) -> Floats:
    return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def _vector(rng: np.random.Generator, size: int, mean: float = 0.0) -> Floats:
    return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)


def _as_original(tensors: Iterator[tuple[str, Floats]]) -> Iterator[tuple[str, Floats]]:
    """The same under the names of InternVL's own code, with queries, keys and values as one matrix."""
    stacked: dict[str, list[Floats]] = {}
    for name, tensor in tensors:
        whole, _, kind = name.rpartition(".")
        _, _, rest = name.partition("encoder.layer.")
        bid, _, part = rest.partition(".")
        if not rest:
            original = ORIGINAL_NAMES.get(name) or f"{ORIGINAL_NAMES[whole]}.{kind}"
            yield original, tensor
        elif part.startswith(("attention.q_proj", "attention.k_proj", "attention.v_proj")):
            stacked.setdefault(f"encoder.layers.{bid}.attn.qkv.{kind}", []).append(tensor)
        else:
            before, _, kind = part.rpartition(".")
            own = ORIGINAL_LAYER.get(part) or f"{ORIGINAL_LAYER[before]}.{kind}"
            yield f"encoder.layers.{bid}.{own}", tensor
    for name, parts in stacked.items():
        yield name, np.concatenate(parts)
