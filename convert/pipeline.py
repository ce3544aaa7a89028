"""checkpoint -> bundle: a conversion, step by step."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, cast

from gguf.utility import model_weight_count_rounded_notation

from acestep_gguf.bundle import (
    SCHEMA_VERSION,
    Bundle,
    DecoderFile,
    Decoders,
    ImageSpec,
    PromptSpec,
    Source,
    Vision,
)
from acestep_gguf.convert.checkpoint import Checkpoint
from acestep_gguf.convert.config import LlavaConfig, parse_config
from acestep_gguf.convert.decoder import decoder_metadata
from acestep_gguf.convert.image_processor import read_image_spec
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.prompt import read_prompt_spec
from acestep_gguf.convert.supported import check_architecture
from acestep_gguf.convert.tensor_names import ModelTensors, find_tensors
from acestep_gguf.convert.tokenizer import Vocabulary, read_vocabulary
from acestep_gguf.convert.vision import check_activations, write_vision
from acestep_gguf.errors import UsageError
from acestep_gguf.names import FTYPES, Ftype, decoder_file_name
from acestep_gguf.quantize.gguf_layout import GgufLayout, lay_out
from acestep_gguf.quantize.one_pass import GgufOutput, write_ggufs
from acestep_gguf.quantize.recipes import TensorShape, choose_types
from acestep_gguf.quantize.staging import Staging

DEFAULT_FTYPES: Final[tuple[Ftype, ...]] = ("Q4_K_M", "Q5_K_M", "Q8_0")

Log = Callable[[str], None]


def convert_checkpoint(
    checkpoint: Path,
    out: Path,
    ftypes: Sequence[Ftype] = DEFAULT_FTYPES,
    *,
    image_size: int | None = None,
    name: str | None = None,
    threads: int | None = None,
    log: Log | None = None,
) -> Bundle:
    """Convert the folder ``checkpoint`` into the bundle ``out``, with one decoder for each of ``ftypes``.

    Everything that can be known to be wrong is found before anything is written. When ``out`` is a bundle of
    the same checkpoint, the decoders that it lacks are added. After an error, ``out`` is as it was before.

    Args:
        checkpoint: folder of a Hugging Face checkpoint.
        out: folder of the bundle; it may exist if it is empty or a bundle.
        ftypes: decoders to make; the first is the default of a new bundle.
        image_size: side of the square pictures in pixels, when it is not to be the checkpoint's.
        name: the model's name in file names and metadata, by default the checkpoint folder's.
        threads: threads that read and quantize, by default one for each core.
        log: called with a line about each step.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or contradicts itself.
        UnsupportedModelError: it is of a kind that this software does not run.
        BundleError: ``out`` cannot be written, or holds something else.
        UsageError: an argument is out of its range.
    """
    _check_ftypes(ftypes)
    log = log or (lambda _: None)
    with Checkpoint(checkpoint) as opened:
        there = OutputFolder.read(out)
        model = _read_model(opened, image_size, there.model_name(name, checkpoint.resolve().name))
        there.check_fits(
            name=model.name,
            size_label=model.size_label,
            source=model.source,
            image=model.image,
            prompt=model.prompt,
        )
        missing = [ftype for ftype in dict.fromkeys([*ftypes, *there.ftypes]) if ftype not in there.decoders]
        if there.bundle and there.vision and not missing:
            log(f"{out} has {', '.join(ftypes)} already.")
            return there.bundle

        with Staging(out) as staging:
            decoders = there.decoders | _write_decoders(staging, model, missing, threads or _n_cores(), log)
            vision = there.vision or _write_vision(staging, model, log)
            staging.publish()
            default = there.bundle.decoders.default if there.bundle else ftypes[0]
            bundle = _bundle(model, decoders, default, vision)
            bundle.write(out)
    log(f"{out} is ready.")
    return bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A checkpoint, read and checked, but for its weights."""

    name: str
    config: LlavaConfig
    tensors: ModelTensors
    vocabulary: Vocabulary
    image: ImageSpec
    prompt: PromptSpec
    source: Source

    @property
    def size_label(self) -> str:
        """The decoder's number of weights, as in ``Name-5.6M-Q4_K_M.gguf``."""
        n_weights = sum(prod(tensor.shape) for tensor in self.tensors.decoder.values())
        return cast(str, model_weight_count_rounded_notation(n_weights))


def _read_model(checkpoint: Checkpoint, image_size: int | None, name: str) -> _Model:
    check_architecture(checkpoint.config, checkpoint.folder)
    config = parse_config(checkpoint.config, checkpoint.folder / "config.json")
    check_activations(config)
    vocabulary = read_vocabulary(checkpoint, config.text_config.vocab_size, config.image_token_index)
    image = read_image_spec(checkpoint, config, image_size)
    prompt = read_prompt_spec(checkpoint, config, vocabulary)
    checkpoint.open_weights()
    tensors = find_tensors(checkpoint, config)
    source = Source(
        architecture="LlavaForConditionalGeneration",
        vision_model_type="clip_vision_model",
        text_model_type="qwen2",
        config_sha256=checkpoint.config_sha256(),
        weights_sha256=checkpoint.weights_sha256(),
    )
    return _Model(
        name=name,
        config=config,
        tensors=tensors,
        vocabulary=vocabulary,
        image=image,
        prompt=prompt,
        source=source,
    )


def _write_decoders(
    staging: Staging, model: _Model, ftypes: Sequence[Ftype], n_threads: int, log: Log
) -> dict[Ftype, DecoderFile]:
    outputs = {}
    for ftype in ftypes:
        layout = _lay_out_decoder(model, ftype, log)
        file_name = decoder_file_name(model.name, model.size_label, ftype)
        outputs[ftype] = GgufOutput(layout, staging.create(file_name))
    if outputs:
        write_ggufs(list(model.tensors.decoder.items()), list(outputs.values()), n_threads=n_threads)
    return {
        ftype: DecoderFile(
            file=output.file.path.name,
            bytes=output.file.n_bytes,
            sha256=output.file.sha256,
            bits_per_weight=round(output.layout.bits_per_weight, 3),
        )
        for ftype, output in outputs.items()
    }


def _lay_out_decoder(model: _Model, ftype: Ftype, log: Log) -> GgufLayout:
    shapes = [TensorShape(name, tensor.shape) for name, tensor in model.tensors.decoder.items()]
    choices = choose_types(ftype, shapes)
    metadata = decoder_metadata(
        model.config.text_config,
        model.vocabulary,
        model.prompt,
        name=model.name,
        size_label=model.size_label,
        ftype=ftype,
    )
    layout = lay_out(metadata, shapes, choices)
    log(f"{ftype}: {layout.n_bytes / 1e6:.1f} MB, {layout.bits_per_weight:.2f} bits per weight.")
    fallbacks = [choice for choice in choices.values() if choice.is_fallback]
    if fallbacks:
        log(
            f"{ftype}: {len(fallbacks)} tensors got another type, because their rows do not fit the recipe's."
        )
    return layout


def _write_vision(staging: Staging, model: _Model, log: Log) -> Vision:
    file = write_vision(staging, model.config, model.image, model.tensors.vision)
    log(f"vision float32: {(file.bytes + file.data.bytes) / 1e6:.1f} MB.")
    return Vision(default="float32", files={"float32": file})


def _bundle(model: _Model, decoders: Mapping[Ftype, DecoderFile], default: Ftype, vision: Vision) -> Bundle:
    return Bundle(
        schema_version=SCHEMA_VERSION,
        min_reader_version=SCHEMA_VERSION,
        name=model.name,
        source=model.source,
        decoders=Decoders(
            default=default, files={ftype: decoders[ftype] for ftype in FTYPES if ftype in decoders}
        ),
        vision=vision,
        image=model.image,
        prompt=model.prompt,
    )


def _check_ftypes(ftypes: Sequence[Ftype]) -> None:
    if not ftypes:
        raise UsageError(f"no decoder is asked for: name at least one of {', '.join(FTYPES)}.")
    for ftype in ftypes:
        if ftype not in FTYPES:
            raise UsageError(f"{ftype} is not a file type that can be made: choose from {', '.join(FTYPES)}.")


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
