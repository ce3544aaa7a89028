"""The tensors of a checkpoint, found by the tables of its families (tensor_tables.py)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from acestep_gguf.convert.checkpoint.config import ModelConfig, PerceiverConfig, VisionLanguageConfig
from acestep_gguf.convert.checkpoint.rope_factors import ROPE_FACTORS, RopeFactors
from acestep_gguf.convert.checkpoint.rope_rows import NeighbouringPairs
from acestep_gguf.convert.checkpoint.tensor_tables import HEAD, Part
from acestep_gguf.convert.checkpoint.tower_weights import Row, as_built
from acestep_gguf.convert.checkpoint.weight import CheckpointWeights, Weight, are_equal
from acestep_gguf.errors import CheckpointError

# Those of a decoder without a tower.
BARE_DECODER_PREFIXES: Final = ("model.",)
BARE_HEAD_PREFIXES: Final = ("lm_head.",)


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """A checkpoint's tensors by their names here, in the order of the table, layer by layer.

    ``tower`` has those of the projector, too.
    """

    decoder: dict[str, Weight]
    tower: dict[str, Weight]


def find_tensors(weights: CheckpointWeights, config: ModelConfig, row_end: int | None = None) -> ModelTensors:
    """Find every tensor that the config asks for.

    The embedding of the token ``row_end`` is the tower's, too: it ends rows of a picture.

    Raises:
        CheckpointError: one is missing, unknown, stored twice, of another shape, or not a float.
    """
    found = _find_all(weights, config)
    decoder_part, head_part, *_ = _parts(config)
    decoder = _wanted(decoder_part, config.text_config.num_hidden_layers)
    if not _is_tied(config, found):
        decoder |= _wanted(head_part)
    dims = _dims(config)
    tower = _wanted_of_tower(config) if isinstance(config, VisionLanguageConfig) else {}
    computed: dict[str, Weight] = {}
    if config.text_config.rope_parameters.rope_type == "llama3":
        computed[ROPE_FACTORS] = RopeFactors(config.text_config)
    built = as_built(_pick(tower, found, dims))
    if row_end is not None:
        built["model.image_newline"] = Row(found["token_embd.weight"], row_end)
    return ModelTensors(
        decoder=_as_llama_cpp_rotates(_pick(decoder, found, dims), config) | computed,
        tower=built,
    )


def _as_llama_cpp_rotates(tensors: Mapping[str, Weight], config: ModelConfig) -> dict[str, Weight]:
    text = config.text_config
    rotated = (".attn_q.weight", ".attn_k.weight") if text.family.pairs_neighbours else ()
    return {
        name: NeighbouringPairs(tensor, text.head_size) if name.endswith(rotated) else tensor
        for name, tensor in tensors.items()
    }


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


def _wanted_of_tower(config: VisionLanguageConfig) -> dict[str, _Wanted]:
    # Layers behind the last one that the projector sees are not needed.
    wanted = _wanted(config.vision_config.family.tensors, max(config.feature_layers))
    for part in config.family.parts:
        wanted |= _wanted(part, _n_layers(part, config))
    left_out = (*config.left_out, *config.vision_config.left_out)
    return {name: row for name, row in wanted.items() if not name.endswith(left_out)}


def _pick(
    wanted: Mapping[str, _Wanted], found: Mapping[str, Weight], dims: Mapping[str, int]
) -> dict[str, Weight]:
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
        tensor.check()
        picked[name] = tensor
    return picked


def _find_all(weights: CheckpointWeights, config: ModelConfig) -> dict[str, Weight]:
    """The checkpoint's tensors by their names here, without those that the table drops."""
    found: dict[str, Weight] = {}
    for tensor in weights.tensors.values():
        name = _name_here(tensor.name, config, is_zero_bias=tensor.name in weights.zero_biases)
        if name in found:
            raise CheckpointError(f"{tensor.name} and {found[name].name} are the same tensor: remove one.")
        if name is not None:
            found[name] = tensor
    return found


def _parts(config: ModelConfig) -> tuple[Part, ...]:
    """Decoder and output matrix; tower, projector and what else there is."""
    decoder = config.text_config.family.tensors
    if isinstance(config, VisionLanguageConfig):
        return decoder, HEAD, config.vision_config.family.tensors, *config.family.parts
    return replace(decoder, prefixes=BARE_DECODER_PREFIXES), replace(HEAD, prefixes=BARE_HEAD_PREFIXES)


def _name_here(hf_name: str, config: ModelConfig, *, is_zero_bias: bool) -> str | None:
    prefixes = ((prefix, part) for part in _parts(config) for prefix in part.prefixes)
    # Longest first, so that "language_model.lm_head." is not taken for "language_model.".
    for prefix, part in sorted(prefixes, key=lambda pair: -len(pair[0])):
        if hf_name.startswith(prefix):
            template, bid = _template(hf_name.removeprefix(prefix))
            if template in part.rows and bid < _n_layers(part, config):
                row = part.rows[template]
                return row and _numbered(row[0], bid)
            break
    if is_zero_bias:
        return None
    raise CheckpointError(f"tensor {hf_name!r} is unknown: get weights and config.json of one model.")


def _template(name: str) -> tuple[str, int]:
    """A name's template in the table, and its layer; -1 for a tensor outside of the layers."""
    match = re.search(r"\blayers?\.(0|[1-9]\d{0,3})(?=\.)", name)
    if match is None:
        return name, -1
    return name[: match.start(1)] + "{bid}" + name[match.end(1) :], int(match[1])


def _numbered(template: str, bid: int) -> str:
    return template.replace("{bid}", str(bid))


def _n_layers(part: Part, config: ModelConfig) -> int:
    if isinstance(config, VisionLanguageConfig):
        if part is config.vision_config.family.tensors:
            return config.vision_config.num_hidden_layers
        if part in config.family.parts:
            return config.perceiver_config.resampler_depth if config.perceiver_config is not None else 0
    return config.text_config.num_hidden_layers


def _dims(config: ModelConfig) -> dict[str, int]:
    text = config.text_config
    dims = {
        "n_vocab": text.vocab_size,
        "n_embd": text.hidden_size,
        "n_head_rows": text.head_size,
        "n_q": text.query_size,
        "n_kv": text.key_value_size,
        "n_ff": text.intermediate_size,
    }
    if not isinstance(config, VisionLanguageConfig):
        return dims
    vision = config.vision_config
    return dims | {
        "one": 1,
        "rgb": vision.num_channels,
        "v_embd": vision.hidden_size,
        "v_qkv": 3 * vision.hidden_size,
        "v_ff": vision.intermediate_size,
        "v_patch": vision.patch_size,
        "v_positions": vision.patches_per_side**2 + vision.family.has_class_token,
        "v_features": config.feature_size,
        **_resampler_dims(config.perceiver_config, text.hidden_size),
    }


def _resampler_dims(perceiver: PerceiverConfig | None, n_embd: int) -> dict[str, int]:
    if perceiver is None:
        return {}
    return {
        "r_latents": perceiver.resampler_n_latents,
        "r_q": perceiver.resampler_n_heads * perceiver.resampler_head_dim,
        "r_kv": perceiver.num_key_value_heads * perceiver.resampler_head_dim,
        "r_ff": 4 * n_embd,
    }


def _is_tied(config: ModelConfig, found: Mapping[str, Weight]) -> bool:
    """Whether the embeddings are the output matrix; as in transformers, not if lm_head differs from them."""
    if not config.is_tied:
        return False
    head, embeddings = found.get("output.weight"), found.get("token_embd.weight")
    return head is None or embeddings is None or are_equal(head, embeddings)
