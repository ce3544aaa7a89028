"""Runs a tower on pictures layer by layer, to find what int8 would ruin and how close int8 comes to float32.

One layer is in memory at a time, and what it makes of each picture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.vision_info import PIXEL_VALUES
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.tower.graph import PLACES, TowerGraph
from acestep_gguf.convert.tower.int8 import (
    BAD_ERROR,
    ChannelStatistics,
    Int8Input,
    Int8Inputs,
    LinearWeights,
    plan_input,
)
from acestep_gguf.convert.tower.layers import Tensors
from acestep_gguf.convert.tower.resampler import (
    first_latents,
    last_norm,
    perceiver_of,
    projected,
    resampler_layer,
)
from acestep_gguf.errors import ImageError
from acestep_gguf.ort_session import session_options
from acestep_gguf.vision.embeds import centred_cosines, cosines
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.int8_check import reference_pixel_values
from acestep_gguf.vision.tiling import tiling_of

Floats = NDArray[np.float32]
OnInput = Callable[[str, Floats], None]

PICTURES: Final = Path(__file__).parent / "calibration_pictures"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
MAX_PICTURES: Final = 64
MAX_CROPS: Final = 5  # of one picture: other pictures tell more than the rest of its tiles
# What was freed and is not given back. Measured: 0.58 GB for ViT-H/14 at 448 px, 0.42 GB of them in use.
ALLOCATOR_KEEPS: Final = 1.4
# Of all weights of linear layers; those of the most sensitive layers stay in float32.
MAX_FLOAT_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How a tower is quantized, and how close it comes: cosines of its image embeds to float32's.

    The centred ones are without the mean token of each picture, which hides errors from the others.
    ``reference`` is what float32 makes of the reference picture, float32 [n_image_tokens, n_embd]; None if
    nothing is quantized.
    """

    int8: Int8Inputs
    cosine_min: float
    cosine_mean: float
    centred_cosine_min: float
    centred_cosine_mean: float
    reference: Floats | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    plan: Int8Input
    error: float
    n_weights: int


def calibrate(
    config: VisionLanguageConfig,
    image: ImageSpec,
    tensors: Tensors,
    pictures: Sequence[Path],
    *,
    n_threads: int,
) -> Calibration:
    """Find out how to quantize the linear layers of a tower.

    Raises:
        ImageError: one of ``pictures`` cannot be read.
    """
    pixels = [
        reference_pixel_values(image),
        *(crop for picture in pictures for crop in _crops(picture, image)),
    ]
    tower = _Tower(config, image, tensors, n_threads)
    statistics: dict[str, ChannelStatistics] = {}

    def observe(name: str, x: Floats) -> None:
        if name not in statistics:
            statistics[name] = ChannelStatistics(x.shape[-1])
        statistics[name].add(x)

    float_embeds = tower.run(pixels, {}, observe)
    int8 = _choose(tower, statistics)
    int8_embeds = tower.run(pixels, int8)
    pairs = list(zip(int8_embeds, float_embeds, strict=True))
    found, centred = (
        np.concatenate([cosine(*pair) for pair in pairs]) for cosine in (cosines, centred_cosines)
    )
    return Calibration(
        int8=int8,
        cosine_min=float(found.min()),
        cosine_mean=float(found.mean()),
        centred_cosine_min=float(centred.min()),
        centred_cosine_mean=float(centred.mean()),
        reference=float_embeds[0],
    )


def calibration_memory(config: VisionLanguageConfig, image: ImageSpec, n_pictures: int) -> int:
    """Bytes that ``calibrate`` takes, about: weights and activations of a layer, and what pictures became."""
    tower = config.vision_config
    hidden, mlp = tower.hidden_size, tower.intermediate_size
    n_rows = (image.size.height // tower.patch_size) ** 2 + 1
    n_crops = n_pictures * min(MAX_CROPS, tiling_of(image).most()[0]) + 1
    projector = image.n_embd * (config.feature_size + image.n_embd)
    weights = 2 * max(4 * hidden**2 + 2 * hidden * mlp, projector)  # as they are read, and transposed
    activations = n_rows * (6 * hidden + 4 * mlp) + tower.num_attention_heads * n_rows**2
    states = (len(config.feature_layers) + 2) * n_crops * n_rows * hidden
    floats = weights + activations + states
    if config.perceiver_config is not None:
        floats = max(floats, _connector_floats(config, n_rows, n_crops))
    return int(ALLOCATOR_KEEPS * np.dtype(np.float32).itemsize * floats)


def _connector_floats(config: VisionLanguageConfig, n_rows: int, n_crops: int) -> int:
    """The same of what is before a resampler, and in one of its layers."""
    text, perceiver, hidden = config.text_config, perceiver_of(config), config.vision_config.hidden_size
    n_embd, mlp = text.hidden_size, text.intermediate_size
    n_heads = 2 * (perceiver.resampler_n_heads + perceiver.num_key_value_heads)
    layer = n_embd * (12 * n_embd + n_heads * perceiver.resampler_head_dim)
    weights = 2 * max(mlp * (2 * hidden + n_embd), layer)
    return weights + n_rows * max(3 * mlp, 3 * n_embd) + n_crops * n_rows * (hidden + n_embd)


def find_pictures(folder: Path | None, image: ImageSpec) -> list[Path]:
    """The pictures in ``folder``, or the few that come with this software.

    Raises:
        ImageError: there are none, too many, or one that cannot be read.
    """
    folder = folder or PICTURES
    try:
        pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise ImageError(f"{folder} cannot be read ({error.strerror}): give a folder of pictures.") from error
    if not 1 <= len(pictures) <= MAX_PICTURES:
        raise ImageError(
            f"{folder} has {len(pictures)} pictures to calibrate with: give 1 to {MAX_PICTURES} JPEG, PNG or "
            "WEBP files."
        )
    for picture in pictures:
        pixel_values(picture, image)  # to see that it can be read, before anything is written
    return pictures


def _crops(picture: Path, image: ImageSpec) -> list[Floats]:
    """Crops of a picture, float32 [1, 3, H, W] each, of many some."""
    crops = pixel_values(picture, image)
    return crops[:: math.ceil(len(crops) / MAX_CROPS)]


def _choose(tower: "_Tower", statistics: Mapping[str, ChannelStatistics]) -> dict[str, Int8Input]:
    """Quantize all inputs but those of the worst layers, as far as these may stay in float32."""
    candidates = []
    for name, source in tower.linear_inputs.items():
        weights = [tower.weight(layer) for layer in source.layers]
        plan, error = plan_input(statistics[name], LinearWeights(weights), is_foldable=source.is_foldable)
        candidates.append(_Candidate(name, plan, error, sum(weight.size for weight in weights)))
    left = MAX_FLOAT_SHARE * sum(candidate.n_weights for candidate in candidates)
    int8 = {candidate.name: candidate.plan for candidate in candidates}
    for candidate in sorted(candidates, key=lambda candidate: -candidate.error):
        if candidate.error > BAD_ERROR and candidate.n_weights <= left:
            left -= candidate.n_weights
            del int8[candidate.name]
    return int8


class _Tower:
    """A tower that is built and run one layer at a time."""

    def __init__(
        self, config: VisionLanguageConfig, image: ImageSpec, tensors: Tensors, n_threads: int
    ) -> None:
        self._config = config
        self._image = image
        self._tensors = tensors
        self._n_threads = n_threads
        whole = self._builder({})
        whole.build()
        self.linear_inputs = whole.linear_inputs
        self._n_blocks = whole.n_blocks

    def weight(self, layer: str) -> Floats:
        """The weight of a linear layer, float32 [out, in]."""
        return self._tensors[f"{layer}.weight"].read()

    def run(
        self, pixels: Sequence[Floats], int8: Int8Inputs, observe: OnInput = lambda _name, _x: None
    ) -> list[Floats]:
        """Image embeds [n_image_tokens, n_embd] of each of ``pixels``.

        ``observe`` sees the inputs of the linear layers that can be quantized.
        """
        builder = self._builder(int8)
        hidden = builder.embed(PIXEL_VALUES)
        fed = [{PIXEL_VALUES: x} for x in pixels]
        outputs = self._run(builder, hidden, fed, observe)
        # Where the patches of each picture lie, for towers whose layers ask for it.
        places: list[dict[str, Floats]] = [{} for _ in pixels]
        if builder.graph.has_node(PLACES):
            found = self._run(builder, PLACES, fed, lambda _name, _x: None)
            places = [{PLACES: one} for one in found]
        # Of each picture: hidden states that are still needed, by their names in the graph.
        states = [{hidden: output} for output in outputs]
        names = {0: hidden}
        for bid in range(self._n_blocks):
            builder = self._builder(int8)
            before, hidden = hidden, builder.block(hidden, bid)
            names[bid + 1] = hidden
            fed = [{before: kept[before]} | where for kept, where in zip(states, places, strict=True)]
            outputs = self._run(builder, hidden, fed, observe)
            for kept, output in zip(states, outputs, strict=True):
                kept[hidden] = output
                if bid not in self._config.feature_layers:
                    del kept[before]
        builder = self._builder(int8)
        selected = builder.select_features(names)
        needed = {names[number] for number in self._config.feature_layers}
        features = [{name: kept[name] for name in needed} for kept in states]
        if self._config.perceiver_config is not None:
            context = projected(builder, selected, self._config)
            return self._resampled(context, self._run(builder, context, features, observe), int8, observe)
        outputs = self._run(builder, builder.project(selected), features, observe)
        return [output[0] for output in outputs]

    def _resampled(
        self, context: str, contexts: Sequence[Floats], int8: Int8Inputs, observe: OnInput
    ) -> list[Floats]:
        """Image embeds of pictures whose projected patches are ``contexts``."""
        config, builder = self._config, self._builder(int8)
        latents = first_latents(builder, context, config)
        found = self._run(builder, latents, [{context: one} for one in contexts], observe)
        for bid in range(perceiver_of(config).resampler_depth):
            builder = self._builder(int8)
            before, latents = latents, resampler_layer(builder, latents, context, bid, config)
            fed = [{before: one, context: seen} for one, seen in zip(found, contexts, strict=True)]
            found = self._run(builder, latents, fed, observe)
        builder = self._builder(int8)
        fed = [{latents: one} for one in found]
        return [output[0] for output in self._run(builder, last_norm(builder, latents, config), fed, observe)]

    def _builder(self, int8: Int8Inputs) -> TowerGraph:
        return TowerGraph(self._config, self._tensors, self._image.size.height, int8)

    def _run(
        self, builder: TowerGraph, output: str, inputs: Sequence[Mapping[str, Floats]], observe: OnInput
    ) -> list[Floats]:
        """``output`` [1, rows, channels] of what was built, for each of ``inputs``."""
        names = [output, *builder.linear_inputs]
        model = builder.graph.to_model(
            name="vision",
            inputs={name: (None,) * x.ndim for name, x in inputs[0].items()},
            outputs={name: (None,) * (2 if name == PLACES else 3) for name in names},
            data_file="in memory",
        )
        weights = builder.graph.read_weights()
        options = session_options(self._n_threads)
        # A few pictures are not worth copies of the weights, nor memory kept for more of them.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
        options.add_external_initializers(
            list(weights), [ort.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
        )
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = []
        for feeds in inputs:
            found, *observed = session.run(names, dict(feeds))
            outputs.append(found)
            for name, x in zip(builder.linear_inputs, observed, strict=True):
                observe(name, x)
            observed.clear()
        return outputs
