"""Tiny random SmolVLM and Idefics3 checkpoints, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.support import tiny_smollm
from tests.support.tiny_checkpoints import TORCH_DTYPE, TinyCheckpoint
from tests.support.tiny_families import TinyDecoder, with_added_tokens

Floats = NDArray[np.float32]

ARCHITECTURES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
# As published.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# They take the place of padding rows in another vocabulary than SmolLM2's.
ADDED_TOKENS = tuple(
    token for token in tiny_smollm.SPECIAL_TOKENS if token.startswith(("<row_", "<global", "<fake", "<end_"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySmolVLM(TinyCheckpoint):
    """Options of a checkpoint; ``write`` makes it."""

    model_type: Literal["idefics3", "smolvlm"] = "idefics3"
    scale_factor: int = 2
    longest_edge: int = 128
    image_size: int = 32
    patch_size: int = 8
    n_padding_rows: int = 47
    max_position_embeddings: int = 2048

    @property
    def has_tiles(self) -> bool:
        """Whether pictures are cut up."""
        return True

    @property
    def _decoder(self) -> TinyDecoder:
        decoder = super(TinySmolVLM, self)._decoder
        if self.decoder == "smollm":
            return replace(decoder, chat_template=SMOLVLM_TEMPLATE)
        return with_added_tokens(decoder, ADDED_TOKENS)

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        config = super(TinySmolVLM, self).tokenizer_config()
        return config | {"processor_class": "Idefics3Processor"}

    def config(self) -> dict[str, Any]:
        """config.json. Like transformers 4, it leaves out what is a config class's default."""
        text = TinyCheckpoint.config(replace(self, has_tower=False))
        vision = {
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": self.vision_intermediate_size,
            "num_hidden_layers": self.vision_n_layers,
            "num_attention_heads": self.vision_n_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            # What the first folders have, whatever the class is called.
            "model_type": f"{self.model_type}_vision" if self.is_v5 else self.model_type,
        }
        config = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "image_token_id": self._decoder.token_id("<image>"),
            "scale_factor": self.scale_factor,
            "tie_word_embeddings": self.tied,
            "text_config": text,
            "vision_config": vision,
        }
        return config | {"dtype" if self.is_v5 else "torch_dtype": TORCH_DTYPE[self.dtype]}

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """As transformers writes them."""
        image_processor = {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": self.image_size},
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": self.longest_edge},
        }
        processor = {"image_seq_len": self.n_image_tokens, "processor_class": "Idefics3Processor"}
        if self.is_v5:
            return {"processor_config.json": processor | {"image_processor": image_processor}}
        return {"preprocessor_config.json": image_processor, "processor_config.json": processor}

    @property
    def n_image_tokens(self) -> int:
        """Tokens of one tile."""
        return (self.image_size // self.patch_size // self.scale_factor) ** 2

    def tensors(self) -> dict[str, Floats]:
        """All weights by their names, float32, not yet rounded to ``dtype``."""
        alone = TinyCheckpoint.tensors(replace(self, has_tower=False))
        decoder = {name.replace("model.", "model.text_model.", 1): tensor for name, tensor in alone.items()}
        return decoder | dict(self._tower_tensors())

    def _tower_tensors(self) -> Iterator[tuple[str, Floats]]:
        rng = np.random.default_rng((self.seed, 1))
        tower, n_embd, n_ff = "model.vision_model.", self.vision_hidden_size, self.vision_intermediate_size
        patch, n_positions = self.patch_size, (self.image_size // self.patch_size) ** 2
        yield f"{tower}embeddings.patch_embedding.weight", _matrix(rng, n_embd, 3, patch, patch)
        yield f"{tower}embeddings.patch_embedding.bias", _vector(rng, n_embd)
        yield f"{tower}embeddings.position_embedding.weight", _matrix(rng, n_positions, n_embd) * 4
        norms = [f"encoder.layers.{bid}.layer_norm{n}" for bid in range(self.vision_n_layers) for n in (1, 2)]
        for norm in [*norms, "post_layernorm"]:
            yield f"{tower}{norm}.weight", _vector(rng, n_embd, mean=1.0)
            yield f"{tower}{norm}.bias", _vector(rng, n_embd)
        linears = {f"self_attn.{name}_proj": (n_embd, n_embd) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (n_ff, n_embd), "mlp.fc2": (n_embd, n_ff)}
        for bid in range(self.vision_n_layers):
            for name, shape in linears.items():
                yield f"{tower}encoder.layers.{bid}.{name}.weight", _matrix(rng, *shape)
                yield f"{tower}encoder.layers.{bid}.{name}.bias", _vector(rng, shape[0])
        n_features = n_embd * self.scale_factor**2
        yield "model.connector.modality_projection.proj.weight", _matrix(rng, self.hidden_size, n_features)


def _matrix(rng: np.random.Generator, *shape: int) -> Floats:
    return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def _vector(rng: np.random.Generator, size: int, mean: float = 0.0) -> Floats:
    return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)
