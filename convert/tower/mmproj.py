"""The tower and projector as an mmproj file, which llama.cpp and the programs built on it read.

Keys, tensor names and what they mean are those of clip.cpp, models/llava.cpp, models/internvl.cpp and
models/pixtral.cpp (tools/mtmd) in llama-cpp-python 0.3.36, for the projector types ``mlp``, ``internvl``,
``idefics3`` and ``pixtral``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from gguf import GGML_QUANT_VERSION, Keys
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.image_spec import AnySize, ClosestAspectTiles, ImageSpec, LongestEdgeTiles
from acestep_gguf.bundle.names import LLAMA_FTYPE, MmprojFtype, mmproj_file_name
from acestep_gguf.bundle.schema import FileRecord
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.rope_rows import NeighbouringPairs
from acestep_gguf.convert.tower.graph import QK_NORM_EPS
from acestep_gguf.convert.tower.layers import Tensors
from acestep_gguf.convert.tower.position_embedding import positions_of_size
from acestep_gguf.errors import UnsupportedModelError
from acestep_gguf.quantize.ggml import block_size
from acestep_gguf.quantize.gguf_layout import GgufLayout, boolean, f32, f32s, i32s, lay_out, string, u32
from acestep_gguf.quantize.one_pass import GgufOutput, TensorSource, write_ggufs
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice
from acestep_gguf.quantize.staging import Staging

ARCHITECTURE: Final = "clip"
MLP: Final = "mlp"
INTERNVL: Final = "internvl"
IDEFICS3: Final = "idefics3"
PIXTRAL: Final = "pixtral"
# By the type of the projector: names of its layers in the file, by those here.
PROJECTOR_LAYERS: Final[Mapping[str, Mapping[str, str]]] = {
    MLP: {"mm.1": "mm.0", "mm.2": "mm.2"},
    INTERNVL: {"mm.norm": "mm.model.mlp.0", "mm.1": "mm.model.mlp.1", "mm.2": "mm.model.mlp.3"},
    IDEFICS3: {"mm.fc": "mm.model.fc"},
    PIXTRAL: {"mm.1": "mm.1", "mm.2": "mm.2"},
}
# What ends rows of a picture, for ``pixtral``.
ROW_END: Final = "v.token_embd.img_break"
FEATURE_LAYERS_KEY: Final = "clip.vision.feature_layer"
# What llama.cpp has no keys for, and does not look at.
IMAGE_KEY: Final = "acestep_gguf.vision.image"
HIDDEN_ACT_KEY: Final = "acestep_gguf.hidden_act"
PROJECTOR_ACT_KEY: Final = "acestep_gguf.projector_hidden_act"
CLASS_TOKEN_LAST_KEY: Final = "acestep_gguf.class_token_last"  # noqa: S105 (no password)

# Whether clip.use_gelu is set: llama.cpp's "gelu" is the tanh approximation, its other one is quick_gelu.
USES_GELU: Final = {"gelu": True, "gelu_pytorch_tanh": True, "quick_gelu": False}
SILU: Final = "silu"  # of towers of the type ``pixtral``, by clip.use_silu
ROPE_THETA: Final = 10_000.0
PROJECTOR_ACTIVATIONS: Final = ("gelu", "gelu_pytorch_tanh")
# Hidden size and layers of the one tower that llama.cpp gives RMS norms.
RMS_NORM_TOWER: Final = (3200, 45)

MATRIX_TYPE: Final[dict[MmprojFtype, QType]] = {"F16": QType.F16, "Q8_0": QType.Q8_0, "F32": QType.F32}
# Small, and all that the tower sees passes through them.
KEPT_F32: Final = ("v.patch_embd.weight", "v.position_embd.weight")


@dataclass(frozen=True, slots=True)
class PlannedMmproj:
    """An mmproj file, ready to be written; ``tensors`` are in the order of ``layout``."""

    file: str
    layout: GgufLayout
    choices: dict[str, TypeChoice]
    tensors: tuple[tuple[str, TensorSource], ...]

    def write(self, staging: Staging, n_threads: int) -> FileRecord:
        file = staging.create(self.file)
        write_ggufs(self.tensors, [GgufOutput(self.layout, file)], n_threads=n_threads)
        return FileRecord(file=self.file, bytes=file.n_bytes, sha256=file.sha256)


def plan_mmproj(
    config: VisionLanguageConfig,
    image: ImageSpec,
    tensors: Tensors,
    *,
    name: str,
    ftype: MmprojFtype,
    class_token_first: bool = False,
) -> PlannedMmproj:
    """The tower and projector for pictures of ``image.size``, with matrices of the type ``ftype``.

    llama.cpp puts the class token behind the patches (https://github.com/ggml-org/llama.cpp/issues/25814), so
    its position embedding comes last, too, unless ``class_token_first``.

    Raises:
        UnsupportedModelError: llama.cpp would compute something else.
    """
    if config.perceiver_config is not None:
        raise _not_in_llama_cpp(f"has no resampler as {config.family.name}'s")
    kind = config.vision_config.family.llama_cpp_projector or config.family.llama_cpp_projector
    if kind is None:
        raise _not_in_llama_cpp(f"cuts pictures for {config.family.name} up in a way of its own")
    _check_activations(config, kind)
    CHECKS[kind](config)
    tower = {tensor: source for tensor, source in tensors.items() if tensor.startswith("v.")}
    class_token_last = "v.class_embd" in tensors and not class_token_first
    if kind == PIXTRAL:
        places = _rotated(config, tensors)
    else:
        table = _positions(config, image, tensors, class_token_last=class_token_last)
        places = {"v.position_embd.weight": table}
    sources: dict[str, TensorSource] = {**tower, **places, **_projector(config, tensors, kind)}
    shapes = [TensorShape(tensor, source.shape) for tensor, source in sources.items()]
    choices = {shape.name: choose_type(shape, MATRIX_TYPE[ftype]) for shape in shapes}
    metadata = _metadata(config, image, name, ftype, kind) | {CLASS_TOKEN_LAST_KEY: boolean(class_token_last)}
    layout = lay_out(metadata, shapes, choices)
    return PlannedMmproj(mmproj_file_name(name, ftype), layout, choices, tuple(sources.items()))


@dataclass(frozen=True, slots=True)
class _Computed:
    """A small tensor that does not stand in the checkpoint; ``load`` gives it as float32 of ``shape``."""

    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.float32]]

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = self.load().astype(np.float32).reshape(-1, self.shape[-1])
        return np.ascontiguousarray(rows[start:stop])


def _check_activations(config: VisionLanguageConfig, kind: str) -> None:
    of_towers = (*USES_GELU, SILU) if kind == PIXTRAL else tuple(USES_GELU)
    for part, activation, known in (
        ("towers", config.vision_config.hidden_act, of_towers),
        ("projectors", config.projector_hidden_act, PROJECTOR_ACTIVATIONS),
    ):
        if activation not in known:
            raise _not_in_llama_cpp(f"has no {activation!r} in {part}, only {', '.join(known)}")


def _check_mlp(config: VisionLanguageConfig) -> None:
    has_class_token = config.vision_config.family.has_class_token
    strategy = config.vision_feature_select_strategy
    if has_class_token != (strategy == "default"):
        difference = "drops" if has_class_token else "keeps"
        raise _not_in_llama_cpp(
            f"{difference} the first feature of such a tower, vision_feature_select_strategy is {strategy!r}"
        )
    _check_swapped(config)


def _check_internvl(config: VisionLanguageConfig) -> None:
    vision, n_layers = config.vision_config, max(config.feature_layers)
    has_rms_norms = vision.norm_type == "rms_norm"
    if has_rms_norms != ((vision.hidden_size, n_layers) == RMS_NORM_TOWER):
        norms = "layer norms" if has_rms_norms else "RMS norms"
        raise _not_in_llama_cpp(f"gives a tower of {n_layers} layers of {vision.hidden_size} {norms}")
    if vision.use_qk_norm and (not has_rms_norms or vision.layer_norm_eps != QK_NORM_EPS):
        raise _not_in_llama_cpp("normalizes queries and keys as it does before the layers of a tower")


def _check_idefics3(config: VisionLanguageConfig) -> None:
    if config.shuffle_factor == 1:
        raise _not_in_llama_cpp("has no pixel shuffle with a scale_factor of 1")
    _check_swapped(config)


def _check_pixtral(config: VisionLanguageConfig) -> None:
    if config.vision_config.rope_theta != ROPE_THETA:
        raise _not_in_llama_cpp(f"rotates by a rope_theta of {ROPE_THETA:,.0f} in such a tower")
    if len(config.feature_layers) != 1:
        raise _not_in_llama_cpp("takes the features of one layer of such a tower")


def _check_swapped(config: VisionLanguageConfig) -> None:
    if config.vision_config.intermediate_size == config.vision_config.hidden_size:
        raise _not_in_llama_cpp("takes ffn_up and ffn_down for each other in a tower where both are square")


CHECKS: Final = {
    MLP: _check_mlp,
    INTERNVL: _check_internvl,
    IDEFICS3: _check_idefics3,
    PIXTRAL: _check_pixtral,
}


def _not_in_llama_cpp(difference: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"llama.cpp {difference}: convert without an mmproj file.")


def _positions(
    config: VisionLanguageConfig, image: ImageSpec, tensors: Tensors, *, class_token_last: bool
) -> TensorSource:
    """Position embeddings for the size of the pictures: llama.cpp adds the table as it is."""
    table = tensors["v.position_embd.weight"]
    n_side = image.size.height // config.vision_config.patch_size
    shape = (n_side**2 + ("v.class_embd" in tensors), table.shape[1])
    fractional = config.vision_config.family.has_fractional_positions
    if shape == table.shape and not class_token_last and not fractional:
        return table
    shift = -1 if class_token_last else 0
    return _Computed(
        shape, lambda: np.roll(positions_of_size(table.read(), n_side, fractional=fractional), shift, axis=0)
    )


def _rotated(config: VisionLanguageConfig, tensors: Tensors) -> dict[str, TensorSource]:
    """Queries and keys in the order in which llama.cpp rotates them, and what ends rows."""
    head_size = config.vision_config.hidden_size // config.vision_config.num_attention_heads
    sources: dict[str, TensorSource] = {ROW_END: tensors["model.image_newline"]}
    for name, tensor in tensors.items():
        if name.endswith((".attn_q.weight", ".attn_k.weight")):
            sources[name] = NeighbouringPairs(tensor, head_size)
    return sources


def _projector(config: VisionLanguageConfig, tensors: Tensors, kind: str) -> dict[str, TensorSource]:
    """The layers under their names in the file; llama.cpp adds a bias always where it knows one."""
    layers: dict[str, TensorSource] = {}
    for name, name_in_file in PROJECTOR_LAYERS[kind].items():
        weight = tensors[f"{name}.weight"]
        layers[f"{name_in_file}.weight"] = weight
        if kind != IDEFICS3:  # which is one layer without a bias
            layers[f"{name_in_file}.bias"] = tensors.get(f"{name}.bias") or _zeros(weight.shape[0])
    if (ordered := _ordered(config.feature_layers)) != config.feature_layers:
        weight, n_embd = tensors["mm.1.weight"], config.vision_config.hidden_size
        layers[f"{PROJECTOR_LAYERS[kind]['mm.1']}.weight"] = _Computed(
            (weight.shape[0], n_embd * len(ordered)),
            lambda: _reordered(weight.read(), config.feature_layers, ordered),
        )
    return layers


def _ordered(feature_layers: tuple[int, ...]) -> tuple[int, ...]:
    """llama.cpp concatenates the features of each layer once, from the first to the last."""
    return tuple(sorted(set(feature_layers)))


def _reordered(
    weight: NDArray[np.float32], given: tuple[int, ...], ordered: tuple[int, ...]
) -> NDArray[np.float32]:
    """A projection [n_out, n_embd * len(given)] of features in the order ``given`` for those ``ordered``."""
    columns = list(zip(given, np.split(weight, len(given), axis=1), strict=True))
    sums = [sum(block for layer, block in columns if layer == wanted) for wanted in ordered]
    return np.concatenate(sums, axis=1)


def _zeros(n: int) -> TensorSource:
    return _Computed((n,), lambda: np.zeros(n, np.float32))


def choose_type(tensor: TensorShape, wanted: QType) -> TypeChoice:
    """The type of a tensor in a file whose matrices are ``wanted``."""
    if len(tensor.shape) == 1 or tensor.name in KEPT_F32:
        return TypeChoice(QType.F32, QType.F32)
    return TypeChoice(wanted if tensor.shape[-1] % block_size(wanted) == 0 else QType.F16, wanted)


def _metadata(
    config: VisionLanguageConfig, image: ImageSpec, name: str, ftype: MmprojFtype, kind: str
) -> dict[str, bytes]:
    vision, layers = config.vision_config, _ordered(config.feature_layers)
    # llama.cpp's pixels are divided by 255 before they are normalized.
    scale = 255 * image.rescale_factor
    return {
        Keys.General.ARCHITECTURE: string(ARCHITECTURE),
        Keys.General.TYPE: string("mmproj"),
        Keys.General.NAME: string(name),
        Keys.General.QUANTIZATION_VERSION: u32(GGML_QUANT_VERSION),
        Keys.General.FILE_TYPE: u32(LLAMA_FTYPE[ftype]),
        Keys.Clip.HAS_VISION_ENCODER: boolean(True),
        Keys.Clip.PROJECTOR_TYPE: string(kind),
        Keys.ClipVision.USE_GELU: boolean(USES_GELU.get(vision.hidden_act, False)),
        Keys.ClipVision.IMAGE_SIZE: u32(image.size.height),
        Keys.ClipVision.PATCH_SIZE: u32(vision.patch_size),
        Keys.ClipVision.EMBEDDING_LENGTH: u32(vision.hidden_size),
        Keys.ClipVision.FEED_FORWARD_LENGTH: u32(vision.intermediate_size),
        Keys.ClipVision.BLOCK_COUNT: u32(max(layers)),
        Keys.ClipVision.Attention.HEAD_COUNT: u32(vision.num_attention_heads),
        Keys.ClipVision.Attention.LAYERNORM_EPS: f32(vision.layer_norm_eps),
        Keys.ClipVision.PROJECTION_DIM: u32(image.n_embd),
        Keys.ClipVision.IMAGE_MEAN: f32s([mean / scale for mean in image.mean]),
        Keys.ClipVision.IMAGE_STD: f32s([std / scale for std in image.std]),
        IMAGE_KEY: string(msgspec.json.encode(image).decode()),
        HIDDEN_ACT_KEY: string(vision.hidden_act),
        PROJECTOR_ACT_KEY: string(config.projector_hidden_act),
        **_own_metadata(config, image),
    }


def _own_metadata(config: VisionLanguageConfig, image: ImageSpec) -> dict[str, bytes]:
    """What one type of projector has and the other does not."""
    if isinstance(image.tiles, ClosestAspectTiles):
        return {
            Keys.ClipVision.Projector.SCALE_FACTOR: u32(config.shuffle_factor),
            Keys.ClipVision.PREPROC_MIN_TILES: u32(image.tiles.min_tiles),
            Keys.ClipVision.PREPROC_MAX_TILES: u32(image.tiles.max_tiles),
        }
    if isinstance(image.tiles, LongestEdgeTiles):
        return {
            Keys.ClipVision.Projector.SCALE_FACTOR: u32(config.shuffle_factor),
            Keys.ClipVision.PREPROC_IMAGE_SIZE: u32(image.tiles.longest_edge),
        }
    if isinstance(image.tiles, AnySize):
        return {Keys.ClipVision.USE_SILU: boolean(config.vision_config.hidden_act == SILU)}
    # Without these, llama.cpp would leave out the last of the layers.
    return {FEATURE_LAYERS_KEY: i32s(_ordered(config.feature_layers))}
