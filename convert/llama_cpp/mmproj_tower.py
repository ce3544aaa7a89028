"""The tower and projector in an mmproj file, as if they had been read from a checkpoint.

What the file means is taken from clip.cpp (tools/mtmd) in llama-cpp-python 0.3.36, but for the defects of its
graphs that docs/llama_cpp.md names: this is the tower that the file holds.
"""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import msgspec
import numpy as np
from gguf import Keys
from numpy.typing import NDArray

from acestep_gguf.bundle.image_spec import (
    MAX_LENGTH,
    AnySize,
    ClosestAspectTiles,
    ImageSpec,
    LongestEdgeTiles,
    Size,
)
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.families import IDEFICS3, INTERNVL, LLAVA
from acestep_gguf.convert.checkpoint.image_tiles import tile_marks
from acestep_gguf.convert.checkpoint.part_families import PIXTRAL, SIGLIP, TowerFamily
from acestep_gguf.convert.checkpoint.rope_rows import PairsOfHalves
from acestep_gguf.convert.checkpoint.tensor_tables import Rows
from acestep_gguf.convert.checkpoint.tower_weights import as_built
from acestep_gguf.convert.checkpoint.weight import DerivedWeight, Weight
from acestep_gguf.convert.tower.graph import check_activations
from acestep_gguf.convert.tower.mmproj import (
    ARCHITECTURE,
    CLASS_TOKEN_LAST_KEY,
    FEATURE_LAYERS_KEY,
    HIDDEN_ACT_KEY,
    IMAGE_KEY,
    MLP,
    PROJECTOR_ACT_KEY,
    PROJECTOR_LAYERS,
    ROW_END,
    SILU,
)
from acestep_gguf.convert.tower.mmproj import IDEFICS3 as IDEFICS3_PROJECTOR
from acestep_gguf.convert.tower.mmproj import INTERNVL as INTERNVL_PROJECTOR
from acestep_gguf.convert.tower.mmproj import PIXTRAL as PIXTRAL_PROJECTOR
from acestep_gguf.errors import UnsupportedModelError
from acestep_gguf.quantize.gguf_source import GgufFile, GgufTensor

# The tile sizes of LLaVA 1.6.
PINPOINTS_KEY: Final = "clip.vision.image_grid_pinpoints"
# How libmtmd fills what a picture leaves of a square: CLIP's mean color.
FILL: Final = (122, 116, 104)
# llama.cpp's "gelu" is the tanh approximation.
LLAMA_CPP_GELU: Final = "gelu_pytorch_tanh"

# The models whose projectors these are.
FAMILIES: Final = {
    MLP: LLAVA,
    INTERNVL_PROJECTOR: INTERNVL,
    IDEFICS3_PROJECTOR: IDEFICS3,
    PIXTRAL_PROJECTOR: LLAVA,
}
# Those of which old converters gave ffn_up and ffn_down each other's names.
MAY_BE_SWAPPED: Final = (MLP, IDEFICS3_PROJECTOR)
# Tiles along the longer side of SmolVLM's and Idefics3's pictures, as published.
N_LONGEST: Final = 4
# Converters write .weight behind the scale of a layer, which is no matrix.
LAYER_SCALE: Final = re.compile(r"(\.ls[12])\.weight$")
SCALES: Final = (".ls1", ".ls2")
SWAPPED: Final = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}

MAX_NUMBERS: Final = 1024

T = TypeVar("T", bool, int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class MmprojTower:
    """What the file says; ``tensors`` have the names of tensor_tables.py.

    Of ``config``, only the parts about the tower and projector mean anything. The tokens around tiles are the
    decoder's, which this file knows nothing of: with ``longest_edge``, ``image`` has no tiles yet.
    """

    config: VisionLanguageConfig
    image: ImageSpec
    tensors: Mapping[str, Weight]
    longest_edge: int | None = None

    @property
    def tile_marks(self) -> tuple[int, ...]:
        """Control tokens around tiles."""
        tiles = self.image.tiles
        return tiles.marks.control_ids if isinstance(tiles, LongestEdgeTiles) else ()

    def with_tile_marks(self, ids: Mapping[str, int], merges: Container[str]) -> Self:
        """The same with the tokens around tiles, of a decoder with this vocabulary.

        Raises:
            CheckpointError: it has no such tokens.
        """
        if self.longest_edge is None:
            return self
        marks = tile_marks(ids, merges, -(-self.longest_edge // self.image.size.height))
        tiles = LongestEdgeTiles(longest_edge=self.longest_edge, marks=marks)
        return replace(self, image=replace(self.image, tiles=tiles))


@dataclass(frozen=True, slots=True)
class _ClassTokenFirst(DerivedWeight):
    """Position embeddings of a file that has the class token's behind those of the patches."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return np.roll(self.tensor.read(), 1, axis=0)[start:stop]


def read_mmproj(file: GgufFile) -> MmprojTower:
    """Read and check everything but the weights.

    Raises:
        BundleError: the file is damaged, or contradicts itself.
        UnsupportedModelError: it holds something else than LLaVA's projector over a CLIP, SigLIP or Pixtral
            tower, or InternVL's or Idefics3's tower and projector.
    """
    reader = _Reader(file)
    tensors = reader.tensors()
    config = reader.config(tensors)
    check_activations(config)
    needed = reader.needed(tensors, config)
    image = reader.image(needed, config)
    longest_edge = reader.longest_edge(image)
    if longest_edge is not None:
        image = replace(image, tiles=None)
    return MmprojTower(config=config, image=image, tensors=needed, longest_edge=longest_edge)


class _Reader:
    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._metadata = file.header.metadata
        self._kind = self._checked_kind()

    def _checked_kind(self) -> str:
        """The type of the projector; others than those of ``FAMILIES`` are refused."""
        architecture = self._metadata.get(Keys.General.ARCHITECTURE)
        if architecture != ARCHITECTURE:
            raise self._unsupported(
                f"is a {architecture!r} model and no mmproj: give DECODER.gguf MMPROJ.gguf"
            )
        kind = self._metadata.get(Keys.Clip.PROJECTOR_TYPE) or self._metadata.get(
            Keys.ClipVision.PROJECTOR_TYPE
        )
        if kind is None and self._optional(Keys.Clip.HAS_LLAVA_PROJECTOR, bool):
            kind = MLP  # the first converters wrote no type
        if not isinstance(kind, str) or kind not in FAMILIES:
            known = " and ".join(map(repr, FAMILIES))
            raise self._unsupported(f"has a projector of the type {kind!r}: supported are {known}")
        if not self._optional(Keys.Clip.HAS_VISION_ENCODER, bool):
            raise self._unsupported("has no vision encoder: give the mmproj of a vision model")
        if PINPOINTS_KEY in self._metadata:
            raise self._unsupported("cuts pictures into tiles (LLaVA 1.6), which is not supported")
        return kind

    def tensors(self) -> dict[str, GgufTensor]:
        """All tensors by the names that this module gives them."""
        found = {}
        names_here = {name: here for here, name in PROJECTOR_LAYERS[self._kind].items()}
        for info in self._file.header.tensors:
            layer, _, part = info.name.rpartition(".")
            name = f"{names_here.get(layer, layer)}.{part}" if layer else part
            name = "model.image_newline" if name == ROW_END else LAYER_SCALE.sub(r"\1", name)
            found[name] = self._file.tensor(info, max_dims=4)
        if "mm.3.weight" in found:
            raise self._unsupported("has a projector of the type 'mlp_norm': only 'mlp' is supported")
        return found

    def config(self, tensors: Mapping[str, GgufTensor]) -> VisionLanguageConfig:
        """What config.json would say of this tower."""
        keys, has_class_token = Keys.ClipVision, "v.class_embd" in tensors
        n_blocks = self._required(keys.BLOCK_COUNT, int)
        family = FAMILIES[self._kind]
        vision = {
            "model_type": self._tower_family(has_class_token=has_class_token).model_type,
            "hidden_size": self._required(keys.EMBEDDING_LENGTH, int),
            "intermediate_size": self._required(keys.FEED_FORWARD_LENGTH, int),
            "num_hidden_layers": n_blocks,
            "num_attention_heads": self._required(keys.Attention.HEAD_COUNT, int),
            "image_size": self._required(keys.IMAGE_SIZE, int),
            "patch_size": self._required(keys.PATCH_SIZE, int),
            "layer_norm_eps": self._required(keys.Attention.LAYERNORM_EPS, float),
            "hidden_act": self._optional(HIDDEN_ACT_KEY, str) or self._activation(),
            "attention_bias": "v.blk.0.attn_q.bias" in tensors,
            "use_qk_norm": "v.blk.0.attn_q_norm.weight" in tensors,
            "norm_type": "layer_norm" if "v.blk.0.ln1.bias" in tensors else "rms_norm",
        }
        raw = {
            "model_type": family.model_type,
            "downsample_ratio": 1 / (self._optional(keys.Projector.SCALE_FACTOR, int) or 1),
            "text_config": {},
            "image_token_index": 0,
            "vision_config": vision,
            "projector_hidden_act": self._optional(PROJECTOR_ACT_KEY, str) or LLAMA_CPP_GELU,
            "vision_feature_select_strategy": "default" if has_class_token else "full",
            # Converters leave out the layers behind the last one that the projector sees.
            "vision_feature_layer": self._numbers(FEATURE_LAYERS_KEY) or [n_blocks],
        }
        try:
            return msgspec.convert(raw, type=VisionLanguageConfig)
        except msgspec.ValidationError as error:
            raise self._file.damaged(str(error)) from error

    def _tower_family(self, *, has_class_token: bool) -> TowerFamily:
        if self._kind == PIXTRAL_PROJECTOR:
            return PIXTRAL
        return SIGLIP if self._kind == MLP and not has_class_token else FAMILIES[self._kind].tower

    def needed(self, tensors: Mapping[str, GgufTensor], config: VisionLanguageConfig) -> dict[str, Weight]:
        """The tensors that the tower is built from, each of its right shape."""
        if self._kind in MAY_BE_SWAPPED:
            tensors = _unswapped(tensors, config)
        known = dict(_known(config))
        if self._last_layer not in tensors:
            raise self._file.damaged(f"tensor {self._last_layer!r} is missing")
        dims = _dims(config, n_embd=tensors[self._last_layer].shape[0])
        for name, tensor in tensors.items():
            if name not in known:
                raise self._unsupported(
                    f"holds the tensor {tensor.name!r}, which {config.family.name} has no use for"
                )
            shape = tuple(dims[dim] for dim in known[name])
            if _without_ones(tensor.shape) != _without_ones(shape):
                raise self._file.damaged(
                    f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, not {list(shape)}"
                )
        left_out = config.vision_config.left_out
        if not any(name.endswith(SCALES) for name in tensors):
            left_out += SCALES  # as in files of ours, which have it in the layers before it
        names = [
            name
            for name in known
            if _layer(name) < max(config.feature_layers) and not name.endswith(left_out)
        ]
        if missing := [name for name in names if name not in tensors]:
            raise self._file.damaged(f"tensor {missing[0]!r} is missing")
        needed: dict[str, Weight] = {name: tensors[name] for name in names}
        if self._optional(CLASS_TOKEN_LAST_KEY, bool):
            table = "v.position_embd.weight"
            needed[table] = _ClassTokenFirst(tensors[table])
        if self._kind == PIXTRAL_PROJECTOR:
            head_size = config.vision_config.hidden_size // config.vision_config.num_attention_heads
            rotated = [name for name in names if name.endswith((".attn_q.weight", ".attn_k.weight"))]
            needed |= {name: PairsOfHalves(tensors[name], head_size) for name in rotated}
        return as_built(needed)

    def image(self, tensors: Mapping[str, Weight], config: VisionLanguageConfig) -> ImageSpec:
        """How pictures are prepared: as libmtmd does, unless we wrote the file and know it better."""
        n_embd = tensors[self._last_layer].shape[0]
        side = config.vision_config.image_size
        known = self._optional(IMAGE_KEY, str)
        try:
            if known:
                image = msgspec.json.decode(known, type=ImageSpec)
            else:
                red, green, blue = self._numbers(Keys.ClipVision.IMAGE_MEAN)[:3]
                red_std, green_std, blue_std = self._numbers(Keys.ClipVision.IMAGE_STD)[:3]
                tiles = self._tiles(config.vision_config.patch_size)
                stretches = self._kind != MLP
                image = ImageSpec(
                    pad_to_square=None,
                    resize="exact" if stretches else "longest_edge",
                    resize_to=Size(height=side, width=side),
                    resample="lanczos" if self._kind == IDEFICS3_PROJECTOR else "bicubic",
                    center_crop=None,
                    rescale_factor=1 / 255,
                    mean=(red, green, blue),
                    std=(red_std, green_std, blue_std),
                    size=Size(height=side, width=side),
                    n_image_tokens=config.n_image_tokens(side),
                    n_embd=n_embd,
                    fill=None if stretches else FILL,
                    tiles=tiles,
                )
        except ValueError as error:
            raise self._file.damaged(f"how to prepare pictures: {error}") from error
        fits = (Size(height=side, width=side), config.n_image_tokens(side), n_embd)
        if (image.size, image.n_image_tokens, image.n_embd) != fits:
            raise self._file.damaged(f"{IMAGE_KEY} does not fit the tower")
        return image

    @property
    def _last_layer(self) -> str:
        """The weight whose rows are the decoder's."""
        return f"{[*PROJECTOR_LAYERS[self._kind]][-1]}.weight"

    def longest_edge(self, image: ImageSpec) -> int | None:
        """What the longer side of SmolVLM's and Idefics3's pictures becomes; None for others."""
        if self._kind != IDEFICS3_PROJECTOR:
            return None
        if isinstance(image.tiles, LongestEdgeTiles):
            return image.tiles.longest_edge
        length = self._optional(Keys.ClipVision.PREPROC_IMAGE_SIZE, int) or N_LONGEST * image.size.height
        if not 2 <= length <= MAX_LENGTH or length % 2:
            raise self._file.damaged(f"{Keys.ClipVision.PREPROC_IMAGE_SIZE} is {length}")
        return length

    def _tiles(self, patch_size: int) -> ClosestAspectTiles | AnySize | None:
        """InternVL's tiles, and Pixtral's sizes; libmtmd does both otherwise than the models were trained."""
        if self._kind == PIXTRAL_PROJECTOR:
            return AnySize(step=patch_size)
        if self._kind != INTERNVL_PROJECTOR:
            return None
        keys = Keys.ClipVision
        return ClosestAspectTiles(
            min_tiles=self._optional(keys.PREPROC_MIN_TILES, int) or 1,
            max_tiles=self._optional(keys.PREPROC_MAX_TILES, int) or 12,
        )

    def _activation(self) -> str:
        uses_gelu = self._optional(Keys.ClipVision.USE_GELU, bool)
        if self._optional(Keys.ClipVision.USE_SILU, bool):
            if self._kind == PIXTRAL_PROJECTOR:
                return SILU
            raise self._unsupported("has a tower with the activation silu, which is not supported")
        return LLAMA_CPP_GELU if uses_gelu else "quick_gelu"

    def _required(self, key: str, kind: type[T]) -> T:
        value = self._optional(key, kind)
        if value is None:
            raise self._file.damaged(f"{key} is missing")
        return value

    def _optional(self, key: str, kind: type[T]) -> T | None:
        value = self._metadata.get(key)
        if value is not None and type(value) is not kind:
            raise self._file.damaged(f"{key} is of another type")
        return value

    def _numbers(self, key: str) -> list[Any]:
        value = self._metadata.get(key)
        if value is None:
            return []
        if not isinstance(value, memoryview) or len(value) > MAX_NUMBERS:
            raise self._file.damaged(f"{key} is not a short array of numbers")
        return value.tolist()

    def _unsupported(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._file.path} {problem}.")


def _known(config: VisionLanguageConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every tensor of such a tower and projector, with the names of its dimensions."""
    tower = config.vision_config.family.tensors
    yield from _named(tower.before_layers)
    for bid in range(config.vision_config.num_hidden_layers):
        for template, dims in _named(tower.layer):
            yield template.replace("{bid}", str(bid)), dims
    yield from _named(tower.after_layers)
    if config.vision_config.family.row_end is not None:
        yield "model.image_newline", ("n_embd",)
    yield from _named(config.family.parts[0].before_layers)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same without first axes of one element, of which GGUF knows nothing."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _named(rows: Rows) -> Iterator[tuple[str, tuple[str, ...]]]:
    return (row for row in rows.values() if row)


def _dims(config: VisionLanguageConfig, n_embd: int) -> dict[str, int]:
    vision = config.vision_config
    return {
        "n_embd": n_embd,
        "one": 1,
        "rgb": vision.num_channels,
        "v_embd": vision.hidden_size,
        "v_ff": vision.intermediate_size,
        "v_patch": vision.patch_size,
        "v_positions": vision.patches_per_side**2 + vision.family.has_class_token,
        "v_features": config.feature_size,
    }


def _unswapped(tensors: Mapping[str, GgufTensor], config: VisionLanguageConfig) -> dict[str, GgufTensor]:
    """Old converters gave ffn_up and ffn_down each other's names; clip.cpp tells it by the shape, too."""

    def true_name(name: str) -> str:
        match = re.fullmatch(r"(v\.blk\.\d+\.)(ffn_up|ffn_down)(\..+)", name)
        if match is None:
            return name
        before, layer, after = match.groups()
        down = tensors.get(f"{before}ffn_down.weight")
        is_swapped = down is not None and down.shape[-1] == config.vision_config.hidden_size
        return before + (SWAPPED[layer] if is_swapped else layer) + after

    return {true_name(name): tensor for name, tensor in tensors.items()}


def _layer(name: str) -> int:
    """Number of the layer that a tensor belongs to; -1 outside of the layers."""
    match = re.match(r"v\.blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
