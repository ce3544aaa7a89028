"""``acestep-gguf quantize``: a decoder becomes one of another ftype."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.bundle.names import FTYPES, ftype_from
from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import DryRun, LogJson, Threads, path
from acestep_gguf.cli.steering_options import SteeringOptions


@takes_groups
def quantize(
    source: Annotated[
        Path,
        typer.Argument(parser=path, metavar="IN.gguf", help="Decoder; one in F32, F16 or BF16 loses least."),
    ],
    out: Annotated[
        Path, typer.Argument(parser=path, metavar="OUT.gguf", help="File to write, or to replace.")
    ],
    ftype: Annotated[str, typer.Argument(metavar="FTYPE", help=f"{', '.join(FTYPES)}.")],
    *,
    allow_requantize: Annotated[
        bool,
        typer.Option(
            "--allow-requantize", help="Quantize tensors again that are quantized, which adds to the loss."
        ),
    ] = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    steering: SteeringOptions,
) -> None:
    """Quantize a decoder, a GGUF file.

    The same command carries on where it was stopped.
    """
    from acestep_gguf.cli.progress import display
    from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf

    work = plan_quantization if dry_run else quantize_gguf
    with display(log_json=log_json) as show:
        work(
            source,
            out,
            ftype_from(ftype),
            steering=steering.parsed(),
            imatrix=steering.imatrix,
            allow_requantize=allow_requantize,
            threads=threads,
            on_event=show,
        )
