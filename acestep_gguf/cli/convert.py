"""``acestep-gguf convert``: a checkpoint becomes a bundle."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acestep_gguf.bundle.names import (
    BUNDLE_FILE,
    FTYPES,
    Ftype,
    ftype_from,
    mmproj_ftype_from,
    vision_precision_from,
)
from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import (
    CalibrationPictures,
    DryRun,
    LogJson,
    Threads,
    TowerPrecisions,
    filled,
    path,
)
from acestep_gguf.cli.steering_options import SteeringOptions
from acestep_gguf.errors import UsageError

if TYPE_CHECKING:
    from acestep_gguf.quantize.conversion_events import Finished


@takes_groups
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(parser=path, metavar="CHECKPOINT", help="Folder as published on Hugging Face.")
    ],
    out: Annotated[
        Path,
        typer.Argument(parser=path, metavar="OUT", help="Folder for the bundle, new or a bundle to add to."),
    ],
    *,
    quant: Annotated[
        list[str] | None,
        typer.Option(
            *("-q", "--quant"),
            help="Type of a decoder; repeat for more. By default Q4_K_M, Q5_K_M and Q8_0, or what the bundle "
            "has.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures in pixels. By default what the checkpoint was made for."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(parser=filled, metavar="NAME", help="Name of the model. By default that of its folder."),
    ] = None,
    threads: Threads = None,
    mmproj: Annotated[
        list[str] | None,
        typer.Option(
            "--mmproj",
            metavar="TYPE",
            help="Also write tower and projector for llama.cpp: F16, Q8_0 or F32; repeat for more.",
        ),
    ] = None,
    class_token_first: Annotated[
        bool,
        typer.Option(
            "--class-token-first", help="Write an --mmproj for a llama.cpp in which #25814 is fixed."
        ),
    ] = False,
    prefill: Annotated[
        bool,
        typer.Option(
            "--prefill",
            help="Also write the decoder's layers in int8, with which onnxruntime reads pictures and long "
            "texts faster: a byte for each weight.",
        ),
    ] = False,
    vision: TowerPrecisions = None,
    calibration: CalibrationPictures = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Measure on the demo's pictures what the types cost, and put it into the bundle.",
        ),
    ] = False,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    steering: SteeringOptions,
) -> None:
    """Convert a checkpoint into a bundle.

    The same command carries on with a conversion that was interrupted.
    """
    if class_token_first and not mmproj:
        raise UsageError("--class-token-first says how an mmproj is written: give --mmproj, too.")
    from acestep_gguf.cli.progress import display
    from acestep_gguf.convert.pipeline import DEFAULT_FTYPES, convert_checkpoint, plan_conversion
    from acestep_gguf.quantize.conversion_events import Event, Finished

    work = plan_conversion if dry_run else convert_checkpoint
    last: list[Finished] = []
    with display(log_json=log_json) as show:

        def on_event(event: Event) -> None:
            if report and log_json and isinstance(event, Finished):
                last.append(event)  # the report is yet to come
            else:
                show(event)

        work(
            checkpoint,
            out,
            list(map(ftype_from, quant)) if quant else _ftypes_there(out) or DEFAULT_FTYPES,
            image_size=image_size,
            name=name,
            steering=steering.parsed(),
            imatrix=steering.imatrix,
            mmproj=list(map(mmproj_ftype_from, mmproj or ())),
            class_token_first=class_token_first,
            prefill=prefill,
            vision=list(map(vision_precision_from, vision)) if vision else None,
            calibration=calibration,
            threads=threads,
            on_event=on_event,
        )
    if report and not dry_run:
        _add_report(out, last, log_json=log_json)


def _add_report(bundle: Path, finished: Sequence["Finished"], *, log_json: bool) -> None:
    from time import perf_counter

    from acestep_gguf.bundle.schema import Bundle
    from acestep_gguf.cli.progress import JsonLines
    from acestep_gguf.cli.quality import add_report
    from acestep_gguf.quantize.conversion_events import FileDone

    if Bundle.read(bundle).vision is None:
        raise UsageError(f"{bundle} is ready, but --report asks about pictures, which it does not read.")
    started = perf_counter()
    lines = add_report(bundle)
    record = Bundle.read(bundle).quality
    if log_json and record is not None:
        done = FileDone(
            file=record.file, bytes=record.bytes, sha256=record.sha256, seconds=perf_counter() - started
        )
        JsonLines()(done)
        for event in finished:
            JsonLines()(replace(event, seconds=event.seconds + done.seconds))
    else:
        print(f"\n{lines}")


def _ftypes_there(out: Path) -> tuple[Ftype, ...]:
    """The decoders of the bundle ``out``, none if there is no bundle."""
    from acestep_gguf.bundle.schema import Bundle

    files = Bundle.read(out).decoders.files if (out / BUNDLE_FILE).is_file() else {}
    return tuple(ftype for ftype in FTYPES if ftype in files)
