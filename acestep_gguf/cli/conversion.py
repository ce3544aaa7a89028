"""Verbs that write models."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import (
    DryRun,
    ImatrixFile,
    LogJson,
    OutputTensorType,
    Pure,
    TensorTypes,
    Threads,
    TokenEmbeddingType,
)
from acestep_gguf.names import ftype_from


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle, new or to be added to.")],
    *,
    quant: Annotated[
        list[str] | None,
        typer.Option("-q", "--quant", help="Decoder, may be repeated; by default Q4_K_M, Q5_K_M, Q8_0."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of pictures in pixels, if not the checkpoint's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model, by default the folder's.")] = None,
    threads: Threads = None,
    tensor_type: TensorTypes = None,
    output_tensor_type: OutputTensorType = None,
    token_embedding_type: TokenEmbeddingType = None,
    pure: Pure = False,
    imatrix: ImatrixFile = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
) -> None:
    """Convert a checkpoint into a bundle; the same command carries on with an interrupted conversion."""
    from acestep_gguf.convert.pipeline import DEFAULT_FTYPES, convert_checkpoint, plan_conversion
    from acestep_gguf.quantize.steering import parse_steering
    from acestep_gguf.verbs.convert import display

    work = plan_conversion if dry_run else convert_checkpoint
    with display(log_json=log_json) as show:
        work(
            checkpoint,
            out,
            list(map(ftype_from, quant)) if quant else DEFAULT_FTYPES,
            image_size=image_size,
            name=name,
            steering=parse_steering(tensor_type or (), output_tensor_type, token_embedding_type, pure=pure),
            imatrix=imatrix,
            threads=threads,
            on_event=show,
        )


def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN.gguf", help="Decoder, best in F32, F16 or BF16.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write, or to replace.")],
    ftype: Annotated[str, typer.Argument(metavar="FTYPE", help="Q4_K_M, Q5_K_M, Q8_0, F16, BF16 or F32.")],
    *,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Change quantized tensors, too; this adds to the loss.")
    ] = False,
    tensor_type: TensorTypes = None,
    output_tensor_type: OutputTensorType = None,
    token_embedding_type: TokenEmbeddingType = None,
    pure: Pure = False,
    imatrix: ImatrixFile = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
) -> None:
    """Make a decoder of another ftype from a GGUF file; the same command carries on where it was stopped."""
    from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf
    from acestep_gguf.quantize.steering import parse_steering
    from acestep_gguf.verbs.convert import display

    work = plan_quantization if dry_run else quantize_gguf
    with display(log_json=log_json) as show:
        work(
            source,
            out,
            ftype_from(ftype),
            steering=parse_steering(tensor_type or (), output_tensor_type, token_embedding_type, pure=pure),
            imatrix=imatrix,
            allow_requantize=allow_requantize,
            threads=threads,
            on_event=show,
        )


def demo(
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Folder of the bundle. Default: in your cache folder.")
    ] = None,
) -> None:
    """Convert the small model that comes with this software, and ask it about three pictures."""
    from acestep_gguf.convert import convert_checkpoint
    from acestep_gguf.verbs.convert import display
    from acestep_gguf.verbs.demo import demo as demo_verb

    def convert_demo(checkpoint: Path, out: Path) -> None:
        with display(log_json=False) as show:
            convert_checkpoint(checkpoint, out, name="Demo", on_event=show)

    demo_verb(directory, convert_demo)
