"""Tiny random Pixtral checkpoints, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import PREFIXES, TORCH_DTYPE, TinyCheckpoint
from tests.support.tiny_families import TinyDecoder, with_added_tokens

Floats = NDArray[np.float32]

IMAGE, ROW_END, IMAGE_END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
# They take the place of padding rows.
ADDED_TOKENS = (IMAGE, ROW_END, IMAGE_END)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyPixtral(TinyCheckpoint):
    """Options of a checkpoint; ``write`` makes it. ``image_size`` is the longest side of a picture."""

    image_size: int = 64
    patch_size: int = 8
    max_position_embeddings: int = 2048
    activation: Any = "gelu"
    vision_rope_theta: float = 10_000.0

    @property
    def has_tiles(self) -> bool:
        """Whether pictures have sizes of their own."""
        return True

    @property
    def _decoder(self) -> TinyDecoder:
        decoder = with_added_tokens(super(TinyPixtral, self)._decoder, ADDED_TOKENS)
        return replace(decoder, chat_template=decoder.chat_template.replace("<image>\\n", IMAGE))

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return super(TinyPixtral, self).tokenizer_config() | {"processor_class": "PixtralProcessor"}

    def config(self) -> dict[str, Any]:
        """config.json. Like transformers 4, it leaves out what is a config class's default."""
        vision: dict[str, Any] = {
            "model_type": "pixtral",
            "head_dim": self.vision_hidden_size // self.vision_n_heads,
            "hidden_act": self.activation,
            "hidden_size": self.vision_hidden_size,
            "image_size": self.image_size,
            "intermediate_size": self.vision_intermediate_size,
            "num_attention_heads": self.vision_n_heads,
            "num_hidden_layers": self.vision_n_layers,
            "patch_size": self.patch_size,
        }
        if self.is_v5:
            vision["rope_parameters"] = {"rope_theta": self.vision_rope_theta, "rope_type": "axial"}
        else:
            vision["rope_theta"] = self.vision_rope_theta
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": self._decoder.token_id(IMAGE),
            "projector_hidden_act": "gelu",
            "text_config": TinyCheckpoint.config(replace(self, has_tower=False)),
            "tie_word_embeddings": self.tied,
            "vision_config": vision,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "dtype" if self.is_v5 else "torch_dtype": TORCH_DTYPE[self.dtype],
        }

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """As transformers writes them."""
        image_processor = {
            "image_processor_type": "PixtralImageProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": {"height": self.patch_size, "width": self.patch_size},
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": self.image_size},
        }
        processor = {
            "image_break_token": ROW_END,
            "image_end_token": IMAGE_END,
            "image_token": IMAGE,
            "patch_size": self.patch_size,
            "processor_class": "PixtralProcessor",
        }
        if self.is_v5:
            return {"processor_config.json": processor | {"image_processor": image_processor}}
        return {"preprocessor_config.json": image_processor, "processor_config.json": processor}

    def tensors(self) -> dict[str, Floats]:
        """All weights by their names in this layout, float32, not yet rounded to ``dtype``."""
        decoder, head, tower, projector, _ = PREFIXES[self.layout]
        alone = TinyCheckpoint.tensors(replace(self, has_tower=False))
        tensors = {
            name.replace("model.", decoder, 1).replace("lm_head.", head, 1): tensor
            for name, tensor in alone.items()
        }
        tower = tower.replace("vision_model.", "")
        tensors |= {tower + name: tensor for name, tensor in self._tower_tensors()}
        return tensors | {projector + name: tensor for name, tensor in self._projector_tensors()}

    def _tower_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 1))
        n_embd, n_ff, patch = self.vision_hidden_size, self.vision_intermediate_size, self.patch_size
        yield "patch_conv.weight", _matrix(rng, n_embd, 3, patch, patch)
        yield "ln_pre.weight", _vector(rng, n_embd, mean=1.0)
        shapes = {f"attention.{name}_proj": (n_embd, n_embd) for name in "qkvo"}
        shapes |= {"feed_forward.gate_proj": (n_ff, n_embd), "feed_forward.up_proj": (n_ff, n_embd)}
        shapes |= {"feed_forward.down_proj": (n_embd, n_ff)}
        for bid in range(self.vision_n_layers):
            layer = f"transformer.layers.{bid}."
            for norm in ("attention_norm", "ffn_norm"):
                yield f"{layer}{norm}.weight", _vector(rng, n_embd, mean=1.0)
            for name, shape in shapes.items():
                # Large queries and keys, so that attention depends on where patches lie.
                yield f"{layer}{name}.weight", _matrix(rng, *shape) * (2 if "attention" in name else 1)

    def _projector_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 2))
        for name, n_in in (("linear_1", self.vision_hidden_size), ("linear_2", self.hidden_size)):
            yield f"{name}.weight", _matrix(rng, self.hidden_size, n_in)
            yield f"{name}.bias", _vector(rng, self.hidden_size)


def _matrix(rng: np.random.Generator, *shape: int) -> Floats:
    return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def _vector(rng: np.random.Generator, size: int, mean: float = 0.0) -> Floats:
    return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)
