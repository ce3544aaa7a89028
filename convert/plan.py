"""What a conversion is going to write, decided and checked before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_gguf.bundle import ImageSpec
from acestep_gguf.chat_template import ChatTemplate
from acestep_gguf.conversion_events import Plan, PlannedFile
from acestep_gguf.convert.checkpoint import Checkpoint
from acestep_gguf.convert.config import LlavaConfig
from acestep_gguf.convert.decoder import decoder_metadata
from acestep_gguf.convert.model import Model, read_model
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.vision import PlannedVision, plan_vision
from acestep_gguf.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.errors import BundleError, CheckpointError, PromptError, UsageError
from acestep_gguf.gguf_header import parse_gguf_header
from acestep_gguf.names import FTYPES, Ftype, decoder_file_name
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

    @property
    def n_threads(self) -> int:
        """Threads that read and quantize, by default one for each core."""
        return thread_count(self.threads)

    def __post_init__(self) -> None:
        if not self.ftypes:
            raise UsageError(f"no decoder is asked for: name at least one of {', '.join(FTYPES)}.")
        for ftype in self.ftypes:
            check_ftype(ftype)
        thread_count(self.threads)


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
    vision: PlannedVision | None
    importance: Mapping[str, Importance] | None
    n_threads: int

    @property
    def is_empty(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.decoders and self.vision is None

    def event(self) -> Plan:
        """The plan as it is told."""
        files = tuple(self._files())
        return Plan(
            folder=str(self.there.path),
            files=files,
            bytes_needed=sum(file.bytes for file in files),
            bytes_free=bytes_free(self.there.path, leftovers(self.there.path)),
            memory=BASE_MEMORY + max(self._decoder_memory(), self._vision_memory()),
        )

    def _files(self) -> Iterator[PlannedFile]:
        folder = self.there.path
        for ftype, decoder in self.decoders.items():
            yield planned_gguf(folder / decoder.file, ftype, decoder.layout, decoder.choices, self.importance)
        if self.vision is not None:
            for file, n_bytes, n_weights in (
                (self.vision.data_name, self.vision.graph.data_bytes, self.vision.graph.n_weights),
                (self.vision.name, len(self.vision.model), 0),
            ):
                yield PlannedFile(
                    file=file,
                    label="vision",
                    bytes=n_bytes,
                    bytes_kept=0,
                    bits_per_weight=32.0 if n_weights else 0.0,
                    types={"F32": n_weights} if n_weights else {},
                    fallbacks={},
                )

    def _decoder_memory(self) -> int:
        layouts = [decoder.layout for decoder in self.decoders.values()]
        return buffer_bytes(layouts, self.n_threads) + sum(len(layout.header) for layout in layouts)

    def _vision_memory(self) -> int:
        # As it is read, as float32, and transposed.
        return 3 * self.vision.graph.largest_weight_bytes if self.vision else 0


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
    choices = {ftype: choose_types(ftype, shapes, options.steering) for ftype in missing}
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
        vision=None if there.vision else _plan_vision(model, model.image),
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


def _plan_vision(model: Model, image: ImageSpec | None) -> PlannedVision | None:
    if image is None or not isinstance(model.config, LlavaConfig):
        return None
    return plan_vision(model.config, image, model.tensors.vision)


def _check_steering_has_effect(options: Options, there: OutputFolder) -> None:
    is_steered = options.steering != AS_THE_RECIPE or options.imatrix is not None
    kept = [ftype for ftype in options.ftypes if ftype in there.decoders]
    if is_steered and kept:
        raise UsageError(
            f"{there.path} has {kept[0]} already, which no option changes any more: give a new folder."
        )
