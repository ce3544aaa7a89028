"""What a conversion is going to write, decided and checked before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
from acestep_gguf.convert.checkpoint.config import LlavaConfig
from acestep_gguf.convert.checkpoint.folder import Checkpoint
from acestep_gguf.convert.gguf_metadata import decoder_metadata
from acestep_gguf.convert.model import Model, read_model
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.tower.calibration import find_pictures
from acestep_gguf.convert.tower.files import PlannedVision, plan_vision
from acestep_gguf.convert.tower.mmproj import PlannedMmproj, plan_mmproj
from acestep_gguf.errors import BundleError, CheckpointError, PromptError, UsageError
from acestep_gguf.prompt.chat_template import ChatTemplate
from acestep_gguf.quantize.conversion_events import Plan, PlannedFile
from acestep_gguf.quantize.gguf_layout import GgufLayout, lay_out
from acestep_gguf.quantize.imatrix import Importance, read_imatrix
from acestep_gguf.quantize.one_pass import buffer_bytes
from acestep_gguf.quantize.planning import bytes_free, check_ftype, identity, planned_gguf, thread_count
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice, choose_types
from acestep_gguf.quantize.staging import leftovers
from acestep_gguf.quantize.steering import AS_THE_RECIPE, Steering

# Measured with Qwen2's vocabulary: Python, numpy, onnx, and the vocabulary while it is read.
BASE_MEMORY: Final = 160 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for: see ``convert_checkpoint``."""

    ftypes: Sequence[Ftype]
    image_size: int | None
    name: str | None
    steering: Steering
    imatrix: Path | None
    threads: int | None
    mmproj: Sequence[MmprojFtype] = ()
    class_token_first: bool = False
    vision: Sequence[VisionPrecision] = VISION_PRECISIONS
    calibration: Path | None = None

    @property
    def n_threads(self) -> int:
        """Threads that read and quantize, by default one for each core."""
        return thread_count(self.threads)

    def __post_init__(self) -> None:
        if not self.ftypes:
            raise UsageError(f"no decoder is asked for: name at least one of {', '.join(FTYPES)}.")
        for ftype in self.ftypes:
            check_ftype(ftype)
        for mmproj in self.mmproj:
            if mmproj not in MMPROJ_FTYPES:
                raise UsageError(f"{mmproj} is no type of an mmproj: choose from {', '.join(MMPROJ_FTYPES)}.")
        check_precisions(self.vision)
        thread_count(self.threads)


def check_precisions(precisions: Sequence[VisionPrecision]) -> None:
    """Raises UsageError unless there are some, all of them ours."""
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
    """The model, what is ``there`` of it, and the files that are missing."""

    name: str
    model: Model
    there: OutputFolder
    decoders: Mapping[Ftype, PlannedDecoder]
    vision: Mapping[VisionPrecision, PlannedVision]
    mmproj: Mapping[MmprojFtype, PlannedMmproj]
    importance: Mapping[str, Importance] | None
    n_threads: int

    @property
    def is_empty(self) -> bool:
        """Whether everything that was asked for is there."""
        return not (self.decoders or self.vision or self.mmproj)

    def event(self) -> Plan:
        """The plan as it is told."""
        files = tuple(self._files())
        return Plan(
            folder=str(self.there.path),
            files=files,
            bytes_needed=sum(file.bytes for file in files),
            bytes_free=bytes_free(self.there.path, leftovers(self.there.path)),
            memory=BASE_MEMORY + self.model.held_bytes + max(self._decoder_memory(), self._vision_memory()),
            source_quantization=self.model.source.quantization,
        )

    def _files(self) -> Iterator[PlannedFile]:
        folder = self.there.path
        for ftype, decoder in self.decoders.items():
            yield planned_gguf(folder / decoder.file, ftype, decoder.layout, decoder.choices, self.importance)
        for vision in self.vision.values():
            yield from vision.planned_files()
        for mmproj in self.mmproj.values():
            yield planned_gguf(folder / mmproj.file, "mmproj", mmproj.layout, mmproj.choices, None)

    def _decoder_memory(self) -> int:
        layouts = [decoder.layout for decoder in self.decoders.values()]
        layouts += [mmproj.layout for mmproj in self.mmproj.values()]
        return buffer_bytes(layouts, self.n_threads) + sum(len(layout.header) for layout in layouts)

    def _vision_memory(self) -> int:
        return max((vision.memory for vision in self.vision.values()), default=0)


def make_plan(checkpoint: Checkpoint, out: Path, options: Options) -> ConversionPlan:
    """Decide what to write into ``out``, and find whatever can be known to be wrong.

    Raises:
        CheckpointError, UnsupportedModelError: see ``read_model``.
        BundleError: ``out`` holds something else.
        ImatrixError: the imatrix is damaged or of another model.
        UsageError: an option does not fit.
    """
    there = OutputFolder.read(out)
    model = read_model(checkpoint, options.image_size)
    name = there.model_name(options.name, checkpoint.folder.resolve().name)
    there.check_fits(
        name=name, size_label=model.size_label, source=model.source, image=model.image, prompt=model.prompt
    )
    wanted = dict.fromkeys([*options.ftypes, *there.ftypes])
    missing = [ftype for ftype in wanted if ftype not in there.decoders]
    _check_steering_has_effect(options, there)

    shapes = [TensorShape(name, tensor.shape) for name, tensor in model.tensors.decoder.items()]
    imatrix = read_imatrix(options.imatrix) if options.imatrix else None
    importance: dict[str, Importance] | None = None
    arch = model.config.text_config.family.arch
    choices = {ftype: choose_types(ftype, shapes, options.steering, arch=arch) for ftype in missing}
    if imatrix:
        importance = {
            name: values
            for chosen in choices.values()
            for name, values in imatrix.importance_of(shapes, chosen).items()
        }
    decoders = {}
    for ftype in missing:
        metadata = decoder_metadata(
            model.config.text_config,
            model.vocabulary,
            model.prompt,
            name=name,
            size_label=model.size_label,
            ftype=ftype,
        )
        layout = lay_out(metadata | (imatrix.metadata if imatrix else {}), shapes, choices[ftype])
        _check_will_run(layout, model, checkpoint.folder)
        decoders[ftype] = PlannedDecoder(
            file=decoder_file_name(name, model.size_label, ftype),
            layout=layout,
            choices=choices[ftype],
            identity=identity(layout, importance, model.source.config_sha256, model.source.weights_sha256),
        )
    return ConversionPlan(
        name=name,
        model=model,
        there=there,
        decoders=decoders,
        vision=_plan_vision(model, options, there),
        mmproj=_plan_mmproj(model, name, options, there),
        importance=importance,
        n_threads=options.n_threads,
    )


def _check_will_run(layout: GgufLayout, model: Model, folder: Path) -> None:
    """What the runtime will check: nothing that it refuses is written.

    Raises:
        CheckpointError: the runtime would refuse it.
    """
    try:
        header = parse_gguf_header(layout.header, folder, layout.n_bytes)
        decoder_info(header)
        check_vocabulary(header, model.prompt, model.image)
        ChatTemplate(model.prompt.chat_template, model.prompt.template_tokens)
    except (BundleError, PromptError) as error:
        raise CheckpointError(str(error)) from error


def _plan_vision(model: Model, options: Options, there: OutputFolder) -> dict[VisionPrecision, PlannedVision]:
    config, image = model.config, model.image
    if image is None or not isinstance(config, LlavaConfig):
        return {}
    wanted = dict.fromkeys([*options.vision, *there.precisions])
    missing = [precision for precision in wanted if precision not in there.vision]
    pictures = find_pictures(options.calibration, image) if "int8" in missing else ()
    return {
        precision: plan_vision(config, image, model.tensors.vision, precision, pictures)
        for precision in missing
    }


def _plan_mmproj(
    model: Model, name: str, options: Options, there: OutputFolder
) -> dict[MmprojFtype, PlannedMmproj]:
    config, image = model.config, model.image
    wanted = dict.fromkeys([*options.mmproj, *there.mmproj_ftypes])
    missing = [ftype for ftype in wanted if ftype not in there.mmproj]
    if not missing:
        return {}
    if image is None or not isinstance(config, LlavaConfig):
        raise UsageError("this checkpoint has no vision tower: leave the mmproj file out.")
    return {
        ftype: plan_mmproj(
            config,
            image,
            model.tensors.vision,
            name=name,
            ftype=ftype,
            class_token_first=options.class_token_first,
        )
        for ftype in missing
    }


def _check_steering_has_effect(options: Options, there: OutputFolder) -> None:
    is_steered = options.steering != AS_THE_RECIPE or options.imatrix is not None
    kept = [ftype for ftype in options.ftypes if ftype in there.decoders]
    if is_steered and kept:
        raise UsageError(
            f"{there.path} has {kept[0]} already, which no option changes any more: give a new folder."
        )
