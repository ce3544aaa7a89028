"""Every tensor of a checkpoint, in one table: its Hugging Face name, its name here, and its shape.

Decoder names are GGUF's; names of the tower and projector are those of llama.cpp's mmproj files.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from acestep_gguf.convert.checkpoint import Checkpoint
from acestep_gguf.convert.config import LlavaConfig, ModelConfig
from acestep_gguf.convert.safetensors_file import DECODERS, SafetensorsTensor
from acestep_gguf.errors import CheckpointError

# Hugging Face name -> (name here, shape); None: dropped on purpose. {bid} is the layer's number.
Rows = Mapping[str, tuple[str, tuple[str, ...]] | None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model, with every prefix that transformers 4.36 to 5 has written before its tensors."""

    prefixes: tuple[str, ...]
    before_layers: Rows
    layer: Rows = field(default_factory=dict)
    after_layers: Rows = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """All rows."""
        return {**self.before_layers, **self.layer, **self.after_layers}


DECODER: Final = Part(
    prefixes=("language_model.model.", "model.language_model.", "language_model."),
    before_layers={
        "embed_tokens.weight": ("token_embd.weight", ("n_vocab", "n_embd")),
    },
    layer={
        "layers.{bid}.input_layernorm.weight": ("blk.{bid}.attn_norm.weight", ("n_embd",)),
        "layers.{bid}.self_attn.q_proj.weight": ("blk.{bid}.attn_q.weight", ("n_embd", "n_embd")),
        "layers.{bid}.self_attn.q_proj.bias": ("blk.{bid}.attn_q.bias", ("n_embd",)),
        "layers.{bid}.self_attn.k_proj.weight": ("blk.{bid}.attn_k.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.k_proj.bias": ("blk.{bid}.attn_k.bias", ("n_kv",)),
        "layers.{bid}.self_attn.v_proj.weight": ("blk.{bid}.attn_v.weight", ("n_kv", "n_embd")),
        "layers.{bid}.self_attn.v_proj.bias": ("blk.{bid}.attn_v.bias", ("n_kv",)),
        "layers.{bid}.self_attn.o_proj.weight": ("blk.{bid}.attn_output.weight", ("n_embd", "n_embd")),
        "layers.{bid}.self_attn.rotary_emb.inv_freq": None,  # a buffer, computed from the config
        "layers.{bid}.post_attention_layernorm.weight": ("blk.{bid}.ffn_norm.weight", ("n_embd",)),
        "layers.{bid}.mlp.gate_proj.weight": ("blk.{bid}.ffn_gate.weight", ("n_ff", "n_embd")),
        "layers.{bid}.mlp.up_proj.weight": ("blk.{bid}.ffn_up.weight", ("n_ff", "n_embd")),
        "layers.{bid}.mlp.down_proj.weight": ("blk.{bid}.ffn_down.weight", ("n_embd", "n_ff")),
    },
    after_layers={
        "norm.weight": ("output_norm.weight", ("n_embd",)),
    },
)
HEAD: Final = Part(
    prefixes=("language_model.lm_head.", "lm_head."),
    before_layers={
        "weight": ("output.weight", ("n_vocab", "n_embd")),
    },
)
TOWER: Final = Part(
    prefixes=(
        "vision_tower.vision_model.",
        "vision_tower.",
        "model.vision_tower.vision_model.",
        "model.vision_tower.",
    ),
    before_layers={
        "embeddings.class_embedding": ("v.class_embd", ("v_embd",)),
        "embeddings.patch_embedding.weight": ("v.patch_embd.weight", ("v_embd", "rgb", "v_patch", "v_patch")),
        "embeddings.position_embedding.weight": ("v.position_embd.weight", ("v_positions", "v_embd")),
        "embeddings.position_ids": None,  # a buffer: 0, 1, 2, …
        "pre_layrnorm.weight": ("v.pre_ln.weight", ("v_embd",)),
        "pre_layrnorm.bias": ("v.pre_ln.bias", ("v_embd",)),
    },
    layer={
        "encoder.layers.{bid}.layer_norm1.weight": ("v.blk.{bid}.ln1.weight", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm1.bias": ("v.blk.{bid}.ln1.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.q_proj.weight": ("v.blk.{bid}.attn_q.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.q_proj.bias": ("v.blk.{bid}.attn_q.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.k_proj.weight": ("v.blk.{bid}.attn_k.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.k_proj.bias": ("v.blk.{bid}.attn_k.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.v_proj.weight": ("v.blk.{bid}.attn_v.weight", ("v_embd", "v_embd")),
        "encoder.layers.{bid}.self_attn.v_proj.bias": ("v.blk.{bid}.attn_v.bias", ("v_embd",)),
        "encoder.layers.{bid}.self_attn.out_proj.weight": (
            "v.blk.{bid}.attn_out.weight",
            ("v_embd", "v_embd"),
        ),
        "encoder.layers.{bid}.self_attn.out_proj.bias": ("v.blk.{bid}.attn_out.bias", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm2.weight": ("v.blk.{bid}.ln2.weight", ("v_embd",)),
        "encoder.layers.{bid}.layer_norm2.bias": ("v.blk.{bid}.ln2.bias", ("v_embd",)),
        "encoder.layers.{bid}.mlp.fc1.weight": ("v.blk.{bid}.ffn_up.weight", ("v_ff", "v_embd")),
        "encoder.layers.{bid}.mlp.fc1.bias": ("v.blk.{bid}.ffn_up.bias", ("v_ff",)),
        "encoder.layers.{bid}.mlp.fc2.weight": ("v.blk.{bid}.ffn_down.weight", ("v_embd", "v_ff")),
        "encoder.layers.{bid}.mlp.fc2.bias": ("v.blk.{bid}.ffn_down.bias", ("v_embd",)),
    },
    after_layers={
        "post_layernorm.weight": None,  # LLaVA takes hidden states from before it
        "post_layernorm.bias": None,
    },
)
PROJECTOR: Final = Part(
    prefixes=("multi_modal_projector.", "model.multi_modal_projector."),
    before_layers={
        "linear_1.weight": ("mm.1.weight", ("n_embd", "v_features")),
        "linear_1.bias": ("mm.1.bias", ("n_embd",)),
        "linear_2.weight": ("mm.2.weight", ("n_embd", "n_embd")),
        "linear_2.bias": ("mm.2.bias", ("n_embd",)),
    },
)
PARTS: Final = (DECODER, HEAD, TOWER, PROJECTOR)
# Of a decoder without a tower.
BARE_DECODER: Final = replace(DECODER, prefixes=("model.",))
BARE_HEAD: Final = replace(HEAD, prefixes=("lm_head.",))


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """A checkpoint's tensors by their names here, in the order of the table, layer by layer."""

    decoder: dict[str, SafetensorsTensor]
    vision: dict[str, SafetensorsTensor]


def find_tensors(checkpoint: Checkpoint, config: ModelConfig) -> ModelTensors:
    """Find every tensor that the config asks for.

    Raises:
        CheckpointError: one is missing, unknown, there twice, of another shape, or not a float.
    """
    found = _find_all(checkpoint, config)
    decoder_part, head_part, *_ = _parts(config)
    decoder = _wanted(decoder_part, config.text_config.num_hidden_layers)
    if not _is_tied(config, found):
        decoder |= _wanted(head_part)
    dims = _dims(config)
    vision = _wanted_vision(config) if isinstance(config, LlavaConfig) else {}
    return ModelTensors(_pick(decoder, found, dims), _pick(vision, found, dims))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor of the table: its name in the oldest layout, for errors, and its shape's dimensions."""

    hf_name: str
    dims: tuple[str, ...]


def _wanted(part: Part, n_layers: int = 0) -> dict[str, _Wanted]:
    """The tensors of a part, by their names here."""

    def rows() -> Iterator[tuple[str, tuple[str, tuple[str, ...]] | None]]:
        yield from part.before_layers.items()
        for bid in range(n_layers):
            for name, row in part.layer.items():
                yield _numbered(name, bid), row and (_numbered(row[0], bid), row[1])
        yield from part.after_layers.items()

    return {row[0]: _Wanted(part.prefixes[0] + name, row[1]) for name, row in rows() if row}


def _wanted_vision(config: LlavaConfig) -> dict[str, _Wanted]:
    # Layers behind the last one that the projector sees are not needed.
    vision = _wanted(TOWER, max(config.feature_layers)) | _wanted(PROJECTOR)
    if not config.multimodal_projector_bias:
        vision = {name: row for name, row in vision.items() if name not in ("mm.1.bias", "mm.2.bias")}
    return vision


def _pick(
    wanted: Mapping[str, _Wanted], found: Mapping[str, SafetensorsTensor], dims: Mapping[str, int]
) -> dict[str, SafetensorsTensor]:
    picked = {}
    for name, want in wanted.items():
        tensor = found.get(name)
        if tensor is None:
            raise CheckpointError(f"tensor {want.hf_name} is missing: get the whole checkpoint.")
        shape = tuple(dims[dim] for dim in want.dims)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {tensor.name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}: "
                "get weights and config.json of one model."
            )
        if tensor.dtype not in DECODERS:
            raise CheckpointError(
                f"tensor {tensor.name} is {tensor.dtype}: save the weights as bfloat16, float16 or float32."
            )
        picked[name] = tensor
    return picked


def _find_all(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, SafetensorsTensor]:
    """The checkpoint's tensors by their names here, without those that the table drops."""
    found: dict[str, SafetensorsTensor] = {}
    for tensor in checkpoint.tensors.values():
        name = _name_here(tensor.name, config)
        if name in found:
            raise CheckpointError(f"{tensor.name} and {found[name].name} are the same tensor: remove one.")
        if name is not None:
            found[name] = tensor
    return found


def _parts(config: ModelConfig) -> tuple[Part, ...]:
    return PARTS if isinstance(config, LlavaConfig) else (BARE_DECODER, BARE_HEAD)


def _name_here(hf_name: str, config: ModelConfig) -> str | None:
    prefixes = ((prefix, part) for part in _parts(config) for prefix in part.prefixes)
    # Longest first, so that "language_model.lm_head." is not taken for "language_model.".
    for prefix, part in sorted(prefixes, key=lambda pair: -len(pair[0])):
        if hf_name.startswith(prefix):
            template, bid = _template(hf_name.removeprefix(prefix))
            if template in part.rows and bid < _n_layers(part, config):
                row = part.rows[template]
                return row and _numbered(row[0], bid)
            break
    raise CheckpointError(f"tensor {hf_name!r} is unknown: get weights and config.json of one model.")


def _template(name: str) -> tuple[str, int]:
    """A name's template in the table, and its layer; -1 for a tensor outside of the layers."""
    match = re.search(r"(?<=\blayers\.)(?:0|[1-9]\d{0,3})(?=\.)", name)
    if match is None:
        return name, -1
    return name[: match.start()] + "{bid}" + name[match.end() :], int(match[0])


def _numbered(template: str, bid: int) -> str:
    return template.replace("{bid}", str(bid))


def _n_layers(part: Part, config: ModelConfig) -> int:
    if part is TOWER and isinstance(config, LlavaConfig):
        return config.vision_config.num_hidden_layers
    return config.text_config.num_hidden_layers


def _dims(config: ModelConfig) -> dict[str, int]:
    text = config.text_config
    dims = {
        "n_vocab": text.vocab_size,
        "n_embd": text.hidden_size,
        "n_kv": text.key_value_size,
        "n_ff": text.intermediate_size,
    }
    if not isinstance(config, LlavaConfig):
        return dims
    vision = config.vision_config
    return dims | {
        "rgb": vision.num_channels,
        "v_embd": vision.hidden_size,
        "v_ff": vision.intermediate_size,
        "v_patch": vision.patch_size,
        "v_positions": vision.patches_per_side**2 + 1,
        "v_features": vision.hidden_size * len(config.feature_layers),
    }


def _is_tied(config: ModelConfig, found: Mapping[str, SafetensorsTensor]) -> bool:
    """Whether the embeddings are the output matrix; as in transformers, not if lm_head differs from them."""
    if not config.is_tied:
        return False
    head, embeddings = found.get("output.weight"), found.get("token_embd.weight")
    return head is None or embeddings is None or Checkpoint.are_equal(head, embeddings)
