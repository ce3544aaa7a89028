"""The ONNX files of the vision tower and projector: planned to the byte or nearly so, then written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from acestep_gguf.bundle.image_spec import SIZES_OF_THEIR_OWN, ImageSpec
from acestep_gguf.bundle.names import VISION_PRECISIONS, VisionPrecision, vision_file_name
from acestep_gguf.bundle.schema import FileRecord, Vision, VisionFile
from acestep_gguf.bundle.vision_info import PIXEL_VALUES, pixel_dims, token_dim
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.onnx_graph import OnnxGraph
from acestep_gguf.convert.tower.calibration import (
    MAX_FLOAT_SHARE,
    Calibration,
    calibrate,
    calibration_memory,
)
from acestep_gguf.convert.tower.graph import TowerGraph
from acestep_gguf.convert.tower.int8 import Int8Input, Int8Inputs, max_outliers
from acestep_gguf.convert.tower.layers import Tensors
from acestep_gguf.quantize.conversion_events import PlannedFile
from acestep_gguf.quantize.planning import ProgressTally
from acestep_gguf.quantize.staging import OnWrite, Staging
from acestep_gguf.vision.int8_check import reference_embeds

NOT_QUANTIZED: Final = Calibration(
    int8={},
    cosine_min=1.0,
    cosine_mean=1.0,
    centred_cosine_min=1.0,
    centred_cosine_mean=1.0,
    reference=None,
)

# Mean cosine of image embeds to float32's, from which on int8 is the default.
GOOD_COSINE: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tower:
    """What towers of all precisions are made from."""

    config: VisionLanguageConfig
    image: ImageSpec
    tensors: Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTower:
    """The tower in one precision, ready to be written: an ONNX file and its external data.

    ``model`` is the ONNX file, ``data_bytes`` the size of the data; of int8 the most that they can be, since
    only the calibration on ``pictures``, before it is written, shows how much has to stay in float32.
    ``memory`` is about what making it takes.
    """

    precision: VisionPrecision
    tower: _Tower
    pictures: Sequence[Path]
    data_bytes: int
    model: bytes
    memory: int
    bits_per_weight: float
    n_weights: Mapping[str, int]

    @property
    def name(self) -> str:
        return vision_file_name(self.precision)

    @property
    def data_name(self) -> str:
        return f"{self.name}.data"

    @property
    def n_bytes(self) -> int:
        """Size of both files together."""
        return self.data_bytes + len(self.model)

    def planned_files(self) -> Iterator[PlannedFile]:
        """What a person or a program is told of both files."""
        for file, n_bytes, types in (
            (self.data_name, self.data_bytes, dict(self.n_weights)),
            (self.name, len(self.model), {}),
        ):
            yield PlannedFile(
                file=file,
                label="vision",
                bytes=n_bytes,
                bytes_kept=0,
                bits_per_weight=self.bits_per_weight if types else 0.0,
                types=types,
                fallbacks={},
            )

    def write(self, staging: Staging, n_threads: int, on_spared: OnWrite) -> VisionFile:
        """Write both files; ``on_spared`` is told how many bytes and weights less than planned there are.

        Raises:
            ImageError: a picture to calibrate with cannot be read.
        """
        tower = self.tower
        calibration = NOT_QUANTIZED
        if self.precision == "int8":
            calibration = calibrate(
                tower.config, tower.image, tower.tensors, self.pictures, n_threads=n_threads
            )
        graph, model = _build(tower, self.precision, calibration.int8)
        n_weights = sum(self.n_weights.values()) - sum(graph.n_weights.values())
        on_spared(self.n_bytes - graph.data_bytes - len(model), n_weights)
        data = staging.create(self.data_name)
        graph.write_data(data)
        file = staging.create(self.name)
        file.write(model)
        return VisionFile(
            file=self.name,
            bytes=file.n_bytes,
            sha256=file.sha256,
            data=FileRecord(file=self.data_name, bytes=data.n_bytes, sha256=data.sha256),
            cosine_to_float32=round(calibration.cosine_mean, 6),
            min_cosine_to_float32=round(calibration.cosine_min, 6),
            centred_cosine_to_float32=round(calibration.centred_cosine_mean, 6),
            min_centred_cosine_to_float32=round(calibration.centred_cosine_min, 6),
            reference=None if calibration.reference is None else reference_embeds(calibration.reference),
        )


def plan_tower(
    config: VisionLanguageConfig,
    image: ImageSpec,
    tensors: Tensors,
    precision: VisionPrecision,
    pictures: Sequence[Path] = (),
) -> PlannedTower:
    """The tower and projector for pictures of ``image.size``; int8 is calibrated on ``pictures``."""
    tower = _Tower(config=config, image=image, tensors=tensors)
    int8: Int8Inputs = {}
    float_bytes = 0
    if precision == "int8":
        builder = TowerGraph(config, tensors, image.size.height)
        builder.build()
        sizes = {
            name: [tensors[f"{layer}.weight"].shape for layer in source.layers]
            for name, source in builder.linear_inputs.items()
        }
        int8 = {name: _widest(shapes[0][1]) for name, shapes in sizes.items()}
        n_weights = sum(rows * columns for shapes in sizes.values() for rows, columns in shapes)
        float_bytes = int(3 * MAX_FLOAT_SHARE * n_weights)
    graph, model = _build(tower, precision, int8)
    memory = 3 * graph.largest_weight_bytes  # as it is read, as float32, and transposed
    if precision == "int8":
        memory = max(memory, calibration_memory(config, image, len(pictures)))
    return PlannedTower(
        precision=precision,
        tower=tower,
        pictures=pictures,
        data_bytes=graph.data_bytes + float_bytes,
        model=model,
        memory=memory,
        bits_per_weight=graph.bits_per_weight,
        n_weights=graph.n_weights,
    )


def write_towers(
    towers: Iterable[PlannedTower], staging: Staging, n_threads: int, progress: ProgressTally
) -> dict[VisionPrecision, VisionFile]:
    """Write the files of ``towers``; to the progress, what need not be written is done, too."""
    return {tower.precision: tower.write(staging, n_threads, on_spared=progress.add) for tower in towers}


def vision_with_default(towers: Mapping[VisionPrecision, VisionFile]) -> Vision | None:
    """The default is int8, unless it came out badly and there is another."""
    files = {precision: towers[precision] for precision in VISION_PRECISIONS if precision in towers}
    if not files:
        return None
    good = [precision for precision, file in files.items() if file.cosine_to_float32 >= GOOD_COSINE]
    return Vision(default="int8" if "int8" in good else next(iter(files)), files=files)


def _widest(n_channels: int) -> Int8Input:
    """The plan of an input that takes the most space."""
    outliers = range(n_channels - max_outliers(n_channels), n_channels)
    return Int8Input(np.ones(n_channels, np.float32), tuple(outliers))


def _build(tower: _Tower, precision: VisionPrecision, int8: Int8Inputs) -> tuple[OnnxGraph, bytes]:
    image = tower.image
    builder = TowerGraph(tower.config, tower.tensors, image.size.height, int8)
    outputs: dict[str, Sequence[str | int]] = {builder.build(): ("B", token_dim(image), image.n_embd)}
    # A tower without layers, or without its first patch, has no attention to give; that of all patches of a
    # picture of any size to each other would take gigabytes.
    has_attention = builder.n_blocks and builder.n_scores <= image.n_image_tokens
    if has_attention and not isinstance(image.tiles, SIZES_OF_THEIR_OWN):
        outputs[builder.patch_attention()] = ("B", builder.n_scores)
    if "model.image_newline" in tower.tensors:
        outputs[builder.image_newline()] = (image.n_embd,)
    model = builder.graph.to_model(
        name="vision",
        inputs={PIXEL_VALUES: ("B", 3, *pixel_dims(image))},
        outputs=outputs,
        data_file=f"{vision_file_name(precision)}.data",
    )
    return builder.graph, model.SerializeToString(deterministic=True)
