"""What a conversion is going to write, decided and checked before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from acestep_gguf.bundle.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.bundle.gguf_header import parse_gguf_header
from acestep_gguf.bundle.names import (
    FTYPES,
    MMPROJ_FTYPES,
    VISION_PRECISIONS,
    Ftype,
    MmprojFtype,
    VisionPrecision,
    decoder_file_name,
)
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.gguf_metadata import decoder_metadata
from acestep_gguf.convert.int8_layers.files import PlannedPrefill, plan_prefill
from acestep_gguf.convert.model import CheckpointModel
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.tower.calibration import find_pictures
from acestep_gguf.convert.tower.files import PlannedTower, plan_tower
from acestep_gguf.convert.tower.mmproj import PlannedMmproj, plan_mmproj
from acestep_gguf.errors import BundleError, CheckpointError, PromptError, UsageError
from acestep_gguf.prompt.chat_template import ChatTemplate
from acestep_gguf.quantize.conversion_events import Planned, PlannedFile
from acestep_gguf.quantize.gguf_layout import GgufLayout, lay_out
from acestep_gguf.quantize.imatrix import Importance, check_is_weighed, read_imatrix
from acestep_gguf.quantize.one_pass import buffer_bytes
from acestep_gguf.quantize.planning import bytes_free, check_ftype, identity, planned_gguf, worker_threads
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice, choose_types
from acestep_gguf.quantize.steering import AS_THE_RECIPE, Steering
from acestep_gguf.storage.unfinished import leftovers

# Measured with Qwen2's vocabulary: Python, numpy, onnx, and the vocabulary while it is read.
BASE_MEMORY: Final = 160 * 2**20


class ConversionOptions(TypedDict, total=False):
    """What may be asked for beside the decoders.

    Args:
        image_size: side of the square pictures in pixels, when it is not to be the checkpoint's.
        name: the model's name in file names and metadata, by default the checkpoint folder's.
        steering: what is to differ from the recipes of the decoders.
        imatrix: file of llama-imatrix, made from the same model.
        mmproj: types in which the tower and projector are written for llama.cpp, too.
        class_token_first: write them for a llama.cpp without the defect #25814, see docs/llama_cpp.md.
        prefill: also write the decoder's layers in int8, for onnxruntime to read long prompts with.
        vision: precisions of the tower to make, by default both, or those that the bundle has; those that are
            there already stay.
        calibration: folder of pictures that show what int8 would ruin, by default a few of our own.
        threads: threads that read and quantize, by default one for each core.
    """

    image_size: int | None
    name: str | None
    steering: Steering
    imatrix: Path | None
    mmproj: Sequence[MmprojFtype]
    class_token_first: bool
    prefill: bool
    vision: Sequence[VisionPrecision] | None
    calibration: Path | None
    threads: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """All that was asked for, checked: see ConversionOptions."""

    ftypes: Sequence[Ftype]
    image_size: int | None = None
    name: str | None = None
    steering: Steering = AS_THE_RECIPE
    imatrix: Path | None = None
    mmproj: Sequence[MmprojFtype] = ()
    class_token_first: bool = False
    prefill: bool = False
    vision: Sequence[VisionPrecision] | None = None
    calibration: Path | None = None
    threads: int | None = None

    @property
    def n_threads(self) -> int:
        """Threads that read and quantize, by default one for each core."""
        return worker_threads(self.threads)

    def __post_init__(self) -> None:
        if not self.ftypes:
            raise UsageError(f"no decoder is asked for: name at least one of {', '.join(FTYPES)}.")
        for ftype in self.ftypes:
            check_ftype(ftype)
        for mmproj in self.mmproj:
            if mmproj not in MMPROJ_FTYPES:
                raise UsageError(
                    f"an mmproj file cannot be of the type {mmproj}: choose from {', '.join(MMPROJ_FTYPES)}."
                )
        if self.vision is not None:
            check_precisions(self.vision)
        worker_threads(self.threads)


def check_precisions(precisions: Sequence[VisionPrecision]) -> None:
    """Raises UsageError for a precision that no tower is made in, and if there is none at all."""
    if not precisions or any(precision not in VISION_PRECISIONS for precision in precisions):
        asked = ", ".join(precisions) or "nothing"
        raise UsageError(
            f"{asked} is asked for as the tower's precision: choose from {', '.join(VISION_PRECISIONS)}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDecoder:
    """A GGUF file to write; see ResumableFile for ``identity``."""

    file: str
    layout: GgufLayout
    choices: Mapping[str, TypeChoice]
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """The model, what the ``output`` folder has of it, and the files that are missing there."""

    name: str
    model: CheckpointModel
    output: OutputFolder
    decoders: Mapping[Ftype, PlannedDecoder]
    towers: Mapping[VisionPrecision, PlannedTower]
    mmproj: Mapping[MmprojFtype, PlannedMmproj]
    prefill: PlannedPrefill | None
    importance: Mapping[str, Importance] | None
    n_threads: int

    @property
    def is_empty(self) -> bool:
        """Whether everything that was asked for is there."""
        return not (self.decoders or self.towers or self.mmproj or self.prefill)

    def event(self) -> Planned:
        """The event that says what will be written."""
        files = tuple(self._files())
        prefill_memory = self.prefill.memory if self.prefill else 0
        memory = max(self._decoder_memory(), self._tower_memory(), prefill_memory)
        return Planned(
            folder=str(self.output.path),
            files=files,
            bytes_needed=sum(file.bytes for file in files),
            bytes_free=bytes_free(self.output.path, leftovers(self.output.path)),
            memory=BASE_MEMORY + self.model.weights.held_bytes + memory,
            source_quantization=self.model.source.quantization,
        )

    def _files(self) -> Iterator[PlannedFile]:
        folder = self.output.path
        for ftype, decoder in self.decoders.items():
            yield planned_gguf(folder / decoder.file, ftype, decoder.layout, decoder.choices, self.importance)
        for tower in self.towers.values():
            yield from tower.planned_files()
        for mmproj in self.mmproj.values():
            yield planned_gguf(folder / mmproj.file, "mmproj", mmproj.layout, mmproj.choices, None)
        if self.prefill:
            yield from self.prefill.planned_files()

    def _decoder_memory(self) -> int:
        layouts = [decoder.layout for decoder in self.decoders.values()]
        layouts += [mmproj.layout for mmproj in self.mmproj.values()]
        return buffer_bytes(layouts, self.n_threads) + sum(len(layout.header) for layout in layouts)

    def _tower_memory(self) -> int:
        return max((tower.memory for tower in self.towers.values()), default=0)


def plan_bundle(model: CheckpointModel, out: Path, request: ConversionRequest) -> ConversionPlan:
    """Decide what to write into ``out``, and find whatever can be known to be wrong.

    Raises:
        CheckpointError: what would be written could not be run.
        UnsupportedModelError: llama.cpp would compute something else with an mmproj file.
        BundleError: ``out`` holds something else.
        ImatrixError: the imatrix is damaged or of another model.
        UsageError: an option does not fit.
    """
    output = OutputFolder.read(out)
    name = output.model_name(request.name, model.path.resolve().name)
    output.check_fits(
        name=name, size_label=model.size_label, source=model.source, image=model.image, prompt=model.prompt
    )
    wanted = dict.fromkeys([*request.ftypes, *output.ftypes])
    missing = [ftype for ftype in wanted if ftype not in output.decoders]
    _check_steering_has_effect(request, output)

    shapes = [TensorShape(name, tensor.shape) for name, tensor in model.tensors.decoder.items()]
    imatrix = read_imatrix(request.imatrix) if request.imatrix else None
    importance: dict[str, Importance] | None = None
    arch = model.config.text_config.family.arch
    choices = {
        ftype: choose_types(ftype, shapes, request.steering, arch=arch, is_weighed=imatrix is not None)
        for ftype in missing
    }
    if imatrix:
        importance = {
            name: values
            for chosen in choices.values()
            for name, values in imatrix.importance_of(shapes, chosen).items()
        }
    decoders = {}
    for ftype in missing:
        check_is_weighed(ftype, shapes, choices[ftype], importance)
        metadata = decoder_metadata(
            model.config.text_config,
            model.vocabulary,
            model.prompt,
            name=name,
            size_label=model.size_label,
            ftype=ftype,
        )
        layout = lay_out(metadata | (imatrix.metadata if imatrix else {}), shapes, choices[ftype])
        _check_will_run(layout, model)
        decoders[ftype] = PlannedDecoder(
            file=decoder_file_name(name, model.size_label, ftype),
            layout=layout,
            choices=choices[ftype],
            identity=identity(layout, importance, model.source.config_sha256, model.source.weights_sha256),
        )
    plan = ConversionPlan(
        name=name,
        model=model,
        output=output,
        decoders=decoders,
        towers=_plan_towers(model, request, output),
        mmproj=_plan_mmproj(model, name, request, output),
        prefill=_plan_prefill(model, request, output),
        importance=importance,
        n_threads=request.n_threads,
    )
    if not plan.is_empty:
        output.check_can_be_added_to()
    return plan


def _check_will_run(layout: GgufLayout, model: CheckpointModel) -> None:
    """Check what the runtime will check, so that nothing is written that it refuses.

    Raises:
        CheckpointError: the runtime would refuse it.
    """
    try:
        header = parse_gguf_header(layout.header, model.path, layout.n_bytes)
        decoder_info(header)
        check_vocabulary(header, model.prompt, model.image)
        ChatTemplate(model.prompt.chat_template, model.prompt.template_tokens)
    except (BundleError, PromptError) as error:
        raise CheckpointError(str(error)) from error


def _plan_towers(
    model: CheckpointModel, request: ConversionRequest, output: OutputFolder
) -> dict[VisionPrecision, PlannedTower]:
    config, image = model.config, model.image
    asked = request.vision or output.precisions or VISION_PRECISIONS
    wanted = dict.fromkeys([*asked, *output.precisions]) if image else {}
    missing = [precision for precision in wanted if precision not in output.towers]
    if request.calibration is not None and "int8" not in missing:
        raise UsageError(
            f"{output.path} gets no int8 tower now, so calibration changes nothing: leave it out, or give a "
            "new folder.",
            settings=["calibration"],
        )
    if image is None or not isinstance(config, VisionLanguageConfig):
        return {}
    pictures = find_pictures(request.calibration, image) if "int8" in missing else ()
    return {
        precision: plan_tower(config, image, model.tensors.tower, precision, pictures)
        for precision in missing
    }


def _plan_mmproj(
    model: CheckpointModel, name: str, request: ConversionRequest, output: OutputFolder
) -> dict[MmprojFtype, PlannedMmproj]:
    config, image = model.config, model.image
    wanted = dict.fromkeys([*request.mmproj, *output.mmproj_ftypes])
    missing = [ftype for ftype in wanted if ftype not in output.mmproj]
    if not missing:
        return {}
    if image is None or not isinstance(config, VisionLanguageConfig):
        raise UsageError("this checkpoint has no vision tower: leave the mmproj file out.")
    return {
        ftype: plan_mmproj(
            config,
            image,
            model.tensors.tower,
            name=name,
            ftype=ftype,
            class_token_first=request.class_token_first,
        )
        for ftype in missing
    }


def _plan_prefill(
    model: CheckpointModel, request: ConversionRequest, output: OutputFolder
) -> PlannedPrefill | None:
    is_wanted = request.prefill or (output.bundle is not None and output.bundle.prefill is not None)
    if not is_wanted or output.prefill:
        return None
    source = model.source
    return plan_prefill(
        model.config.text_config, model.tensors.decoder, source.config_sha256, source.weights_sha256
    )


def _check_steering_has_effect(request: ConversionRequest, output: OutputFolder) -> None:
    is_steered = request.steering != AS_THE_RECIPE or request.imatrix is not None
    kept = [ftype for ftype in request.ftypes if ftype in output.decoders]
    if is_steered and kept:
        raise UsageError(
            f"{output.path} has {kept[0]} already, which options do not change any more: give a new folder."
        )
