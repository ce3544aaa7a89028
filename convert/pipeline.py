"""checkpoint -> bundle: a conversion, step by step."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Final, Unpack

from acestep_gguf.bundle.names import FTYPES, Ftype, MmprojFtype, VisionPrecision
from acestep_gguf.bundle.schema import (
    SCHEMA_VERSION,
    Bundle,
    DecoderFile,
    Decoders,
    FileRecord,
    PrefillFile,
    Source,
    VisionFile,
    min_reader_version,
)
from acestep_gguf.convert.checkpoint.identity import HASHES_FILE, hashing
from acestep_gguf.convert.conversion_plan import (
    ConversionOptions,
    ConversionPlan,
    ConversionRequest,
    plan_bundle,
)
from acestep_gguf.convert.int8_layers.files import DATA_FILE
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.tower.files import vision_with_default, write_towers
from acestep_gguf.errors import BundleError
from acestep_gguf.quantize.conversion_events import FileDone, Finished, Planned
from acestep_gguf.quantize.one_pass import GgufOutput, write_ggufs
from acestep_gguf.quantize.planning import OnEvent, ProgressTally, check_disk
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import LOCK_FILE, journal_path, leftovers

DEFAULT_FTYPES: Final[tuple[Ftype, ...]] = ("Q4_K_M", "Q5_K_M", "Q8_0")


def convert_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ftypes: Sequence[Ftype] = DEFAULT_FTYPES,
    *,
    on_event: OnEvent = lambda _: None,
    **options: Unpack[ConversionOptions],
) -> Bundle:
    """Convert the folder ``checkpoint`` into the bundle ``out``, with one decoder for each of ``ftypes``.

    Everything that can be known to be wrong is found before anything is written. When ``out`` is a bundle of
    the same checkpoint, the decoders that it lacks are added. After an error, ``out`` is as it was before;
    but after a full disk, a lost source or a killed process, partial files stay under hidden names, and the
    same call carries on with them.

    Args:
        checkpoint: folder of a Hugging Face checkpoint.
        out: folder of the bundle; it may exist if it is empty or a bundle.
        ftypes: decoders to make; the first is the default of a new bundle.
        on_event: called with each event, see conversion_events.py; very often with Progress.
        options: see ConversionOptions.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or contradicts itself.
        UnsupportedModelError: it is of a kind that this software, or for ``mmproj`` llama.cpp, does not run.
        BundleError: ``out`` cannot be written, holds something else, or another process is writing to it.
        ImatrixError: ``imatrix`` is damaged or of another model.
        ImageError: ``calibration`` has no picture, or one that cannot be read.
        UsageError: an argument is out of its range.
    """
    started = perf_counter()
    checkpoint, out = Path(checkpoint), Path(out)
    request = ConversionRequest(ftypes=ftypes, **options)
    with open_model(checkpoint, request.image_size) as model:
        plan = plan_bundle(model, out, request)
        planned = plan.event()
        on_event(planned)
        if plan.is_empty and plan.output.bundle:
            if leftovers(out):
                with Staging(out):
                    _remove_leftovers(plan)
            on_event(Finished(folder=str(out), seconds=perf_counter() - started))
            return plan.output.bundle

        progress = ProgressTally(planned, on_event)
        with Staging(out, progress.add) as staging:
            _check_nobody_else_wrote(plan)
            check_disk(planned)
            _remove_leftovers(plan)
            with hashing(model.weights.stored, staging, plan.n_threads) as tensors_sha256:
                decoders, decoder_seconds = _write_decoders(staging, plan)
                towers, tower_seconds = _write_towers(staging, plan, progress)
                mmproj_files, mmproj_seconds = _write_mmproj(staging, plan)
                prefill, prefill_seconds = _write_prefill(staging, plan)
                source = replace(model.source, tensors_sha256=tensors_sha256.result())
            model.weights.check_unchanged()
            plan.output.check_same_weights(tensors_sha256.result())
            staging.publish()
            bundle = _bundle(
                plan,
                source=source,
                default=request.ftypes[0],
                decoders=decoders,
                towers=towers,
                mmproj=mmproj_files,
                prefill=prefill,
            )
            bundle.write(out)
    seconds_of = {"vision": tower_seconds, "mmproj": mmproj_seconds, "prefill": prefill_seconds}
    for file in planned.files:
        record = next(record for record in bundle.records() if record.file == file.file)
        seconds = seconds_of.get(file.label, decoder_seconds)
        on_event(FileDone(file=record.file, bytes=record.bytes, sha256=record.sha256, seconds=seconds))
    on_event(Finished(folder=str(out), seconds=perf_counter() - started))
    return bundle


def plan_conversion(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ftypes: Sequence[Ftype] = DEFAULT_FTYPES,
    *,
    on_event: OnEvent = lambda _: None,
    **options: Unpack[ConversionOptions],
) -> Planned:
    """What ``convert_checkpoint`` would write, with the same arguments and errors; nothing is written."""
    request = ConversionRequest(ftypes=ftypes, **options)
    with open_model(Path(checkpoint), request.image_size) as model:
        planned = plan_bundle(model, Path(out), request).event()
    on_event(planned)
    return planned


def _check_nobody_else_wrote(plan: ConversionPlan) -> None:
    """The plan was made before the folder was locked."""
    if OutputFolder.read(plan.output.path) != plan.output:
        raise BundleError(f"another process changed {plan.output.path} just now: give the command again.")


def _remove_leftovers(plan: ConversionPlan) -> None:
    """Remove what another command left unfinished."""
    folder = plan.output.path
    resumable = [] if plan.is_empty else [HASHES_FILE, *(decoder.file for decoder in plan.decoders.values())]
    if plan.prefill:
        resumable.append(DATA_FILE)
    own = {LOCK_FILE, *map(partial_name, resumable)}
    own |= {journal_path(folder / file).name for file in resumable}
    for path in leftovers(folder):
        if path.name not in own:
            path.unlink()


def _write_decoders(staging: Staging, plan: ConversionPlan) -> tuple[dict[Ftype, DecoderFile], float]:
    """The decoders of the bundle, and the seconds that it took to write those that were missing."""
    started = perf_counter()
    tensors = list(plan.model.tensors.decoder.items())
    stamps = [tensor.stamp for _, tensor in tensors]
    outputs = {
        ftype: GgufOutput(
            decoder.layout, staging.create_resumable(decoder.file, identity=decoder.identity, stamps=stamps)
        )
        for ftype, decoder in plan.decoders.items()
    }
    if outputs:
        importance = plan.importance or {}
        write_ggufs(tensors, list(outputs.values()), n_threads=plan.n_threads, importance=importance)
    written = {
        ftype: DecoderFile(
            file=output.file.path.name,
            bytes=output.file.n_bytes,
            sha256=output.file.sha256,
            bits_per_weight=round(output.layout.bits_per_weight, 3),
        )
        for ftype, output in outputs.items()
    }
    return plan.output.decoders | written, perf_counter() - started


def _write_towers(
    staging: Staging, plan: ConversionPlan, progress: ProgressTally
) -> tuple[dict[VisionPrecision, VisionFile], float]:
    """The towers of the bundle, and the seconds that it took to write those that were missing."""
    started = perf_counter()
    written = write_towers(plan.towers.values(), staging, plan.n_threads, progress)
    return plan.output.towers | written, perf_counter() - started


def _write_mmproj(staging: Staging, plan: ConversionPlan) -> tuple[dict[MmprojFtype, FileRecord], float]:
    """The mmproj files of the bundle, and the seconds that it took to write those that were missing."""
    started = perf_counter()
    written = {ftype: mmproj.write(staging, plan.n_threads) for ftype, mmproj in plan.mmproj.items()}
    return plan.output.mmproj | written, perf_counter() - started


def _write_prefill(staging: Staging, plan: ConversionPlan) -> tuple[PrefillFile | None, float]:
    """The files that read prompts in int8, if there are any, and the seconds that it took to write them."""
    started = perf_counter()
    written = plan.prefill.write(staging) if plan.prefill else None
    return written or plan.output.prefill, perf_counter() - started


def _bundle(
    plan: ConversionPlan,
    *,
    source: Source,
    default: Ftype,
    decoders: Mapping[Ftype, DecoderFile],
    towers: Mapping[VisionPrecision, VisionFile],
    mmproj: dict[MmprojFtype, FileRecord],
    prefill: PrefillFile | None,
) -> Bundle:
    return Bundle(
        schema_version=SCHEMA_VERSION,
        min_reader_version=min_reader_version(plan.model.image, plan.model.prompt),
        name=plan.name,
        source=source,
        decoders=Decoders(
            default=plan.output.bundle.decoders.default if plan.output.bundle else default,
            files={ftype: decoders[ftype] for ftype in FTYPES if ftype in decoders},
        ),
        vision=vision_with_default(towers),
        image=plan.model.image,
        prompt=plan.model.prompt,
        mmproj=mmproj,
        quality=plan.output.quality,
        prefill=prefill,
    )
