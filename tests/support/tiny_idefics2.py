"""Tiny random IDEFICS-2 checkpoints, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import TORCH_DTYPE, TinyCheckpoint
from tests.support.tiny_families import TinyDecoder, with_added_tokens

Floats = NDArray[np.float32]

AROUND, END = "<fake_token_around_image>", "<end_of_utterance>"
# They take the place of padding rows.
ADDED_TOKENS = (AROUND, END)
# As published.
IDEFICS2_TEMPLATE = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyIdefics2(TinyCheckpoint):
    """Options of a checkpoint; ``write`` makes it. ``image_size`` is the side of the table of positions."""

    image_size: int = 56
    patch_size: int = 7
    longest_edge: int = 56
    shortest_edge: int = 21
    splits: bool = True
    max_position_embeddings: int = 2048

    n_latents: int = 6
    depth: int = 2
    n_resampler_heads: int = 4
    resampler_head_dim: int = 24
    n_resampler_kv_heads: int = 2
    resampler_hidden_size: int | None = None  # in perceiver_config; None leaves it out

    @property
    def has_tiles(self) -> bool:
        """Whether pictures are cut up, or have sizes of their own."""
        return True

    @property
    def _decoder(self) -> TinyDecoder:
        decoder = with_added_tokens(super(TinyIdefics2, self)._decoder, ADDED_TOKENS)
        return replace(decoder, chat_template=IDEFICS2_TEMPLATE, eos_tokens=("</s>", END))

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return super(TinyIdefics2, self).tokenizer_config() | {"processor_class": "Idefics2Processor"}

    def config(self) -> dict[str, Any]:
        """config.json. Like transformers 4, it leaves out what is a config class's default."""
        perceiver: dict[str, Any] = {
            "model_type": "idefics2_perceiver" if self.is_v5 else "idefics2",
            "num_key_value_heads": self.n_resampler_kv_heads,
            "resampler_depth": self.depth,
            "resampler_head_dim": self.resampler_head_dim,
            "resampler_n_heads": self.n_resampler_heads,
            "resampler_n_latents": self.n_latents,
        }
        if self.resampler_hidden_size is not None:
            perceiver |= {"hidden_size": self.resampler_hidden_size, "rms_norm_eps": 1e-2}
        vision = {
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": self.vision_intermediate_size,
            "num_hidden_layers": self.vision_n_layers,
            "num_attention_heads": self.vision_n_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            # What the first folders have, whatever the class is called.
            "model_type": "idefics2_vision" if self.is_v5 else "idefics2",
        }
        return {
            "architectures": ["Idefics2ForConditionalGeneration"],
            "model_type": "idefics2",
            "image_token_id": self._decoder.token_id("<image>"),
            "perceiver_config": perceiver,
            "text_config": TinyCheckpoint.config(replace(self, has_tower=False)),
            "tie_word_embeddings": self.tied,
            "vision_config": vision,
            "dtype" if self.is_v5 else "torch_dtype": TORCH_DTYPE[self.dtype],
        }

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """As transformers writes them."""
        image_processor = {
            "image_processor_type": "Idefics2ImageProcessor",
            "do_convert_rgb": True,
            "do_image_splitting": self.splits,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": self.longest_edge, "shortest_edge": self.shortest_edge},
        }
        processor = {"image_seq_len": self.n_latents, "processor_class": "Idefics2Processor"}
        if self.is_v5:
            return {"processor_config.json": processor | {"image_processor": image_processor}}
        return {"preprocessor_config.json": image_processor, "processor_config.json": processor}

    def tensors(self) -> dict[str, Floats]:
        """All weights by their names, float32, not yet rounded to ``dtype``."""
        alone = TinyCheckpoint.tensors(replace(self, has_tower=False))
        decoder = {name.replace("model.", "model.text_model.", 1): tensor for name, tensor in alone.items()}
        return decoder | dict(self._tower_tensors()) | dict(self._connector_tensors())

    def _tower_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 1))
        matrix, vector = partial(_matrix, rng), partial(_vector, rng)
        tower, n_embd, n_ff = "model.vision_model.", self.vision_hidden_size, self.vision_intermediate_size
        patch, n_positions = self.patch_size, (self.image_size // self.patch_size) ** 2
        yield f"{tower}embeddings.patch_embedding.weight", matrix(n_embd, 3, patch, patch)
        yield f"{tower}embeddings.patch_embedding.bias", vector(n_embd)
        yield f"{tower}embeddings.position_embedding.weight", matrix(n_positions, n_embd) * 8
        linears = {f"self_attn.{name}_proj": (n_embd, n_embd) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (n_ff, n_embd), "mlp.fc2": (n_embd, n_ff)}
        for bid in range(self.vision_n_layers):
            layer = f"{tower}encoder.layers.{bid}."
            for norm in ("layer_norm1", "layer_norm2"):
                yield f"{layer}{norm}.weight", vector(n_embd, mean=1.0)
                yield f"{layer}{norm}.bias", vector(n_embd)
            for name, shape in linears.items():
                yield f"{layer}{name}.weight", matrix(*shape)
                yield f"{layer}{name}.bias", vector(shape[0])
        yield f"{tower}post_layernorm.weight", vector(n_embd, mean=1.0)
        yield f"{tower}post_layernorm.bias", vector(n_embd)

    def _connector_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 2))
        matrix, vector = partial(_matrix, rng), partial(_vector, rng)
        n_embd, n_ff, n_in = self.hidden_size, self.intermediate_size, self.vision_hidden_size
        for name, shape in (("gate", (n_ff, n_in)), ("up", (n_ff, n_in)), ("down", (n_embd, n_ff))):
            yield f"model.connector.modality_projection.{name}_proj.weight", matrix(*shape)
        resampler = "model.connector.perceiver_resampler."
        yield f"{resampler}latents", matrix(self.n_latents, n_embd) * n_embd**0.5
        head, n_heads, n_kv_heads = self.resampler_head_dim, self.n_resampler_heads, self.n_resampler_kv_heads
        shapes = {f"self_attn.{name}": (head * n_kv_heads, n_embd) for name in "kv"}
        shapes |= {"self_attn.q": (head * n_heads, n_embd), "self_attn.o": (n_embd, head * n_heads)}
        shapes |= {f"mlp.{name}": (4 * n_embd, n_embd) for name in ("gate", "up")}
        shapes |= {"mlp.down": (n_embd, 4 * n_embd)}
        for bid in range(self.depth):
            layer = f"{resampler}layers.{bid}."
            for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
                yield f"{layer}{norm}.weight", vector(n_embd, mean=1.0)
            for name, shape in shapes.items():
                # Large queries, so that attention depends on what is seen.
                yield f"{layer}{name}_proj.weight", matrix(*shape) * (3 if name == "self_attn.q" else 1)
        yield f"{resampler}norm.weight", vector(n_embd, mean=1.0)


def _matrix(rng: np.random.Generator, *shape: int) -> Floats:
    return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def _vector(rng: np.random.Generator, size: int, mean: float = 0.0) -> Floats:
    return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)
