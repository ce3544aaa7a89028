"""Verbs that write models."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.bundle.names import VISION_PRECISIONS, ftype_from, mmproj_ftype_from, vision_precision_from
from acestep_gguf.cli.options import (
    CalibrationPictures,
    DryRun,
    ImatrixFile,
    LogJson,
    OutputTensorType,
    Pure,
    TensorTypes,
    Threads,
    TokenEmbeddingType,
    TowerPrecisions,
)


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
    mmproj: Annotated[
        list[str] | None,
        typer.Option(
            "--mmproj",
            metavar="TYPE",
            help="Also write tower and projector for llama.cpp, as F16, Q8_0 or F32; repeat. A bundle that "
            "is there gets no other decoder without -q.",
        ),
    ] = None,
    class_token_first: Annotated[
        bool, typer.Option("--class-token-first", help="With --mmproj: for a llama.cpp with #25814 fixed.")
    ] = False,
    vision: TowerPrecisions = None,
    calibration: CalibrationPictures = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
) -> None:
    """Convert a checkpoint into a bundle; the same command carries on with an interrupted conversion."""
    from acestep_gguf.convert.pipeline import DEFAULT_FTYPES, convert_checkpoint, plan_conversion
    from acestep_gguf.quantize.steering import parse_steering
    from acestep_gguf.verbs.convert import display, ftypes_there

    ftypes = ftypes_there(out) if mmproj else None
    work = plan_conversion if dry_run else convert_checkpoint
    with display(log_json=log_json) as show:
        work(
            checkpoint,
            out,
            list(map(ftype_from, quant)) if quant else ftypes or DEFAULT_FTYPES,
            image_size=image_size,
            name=name,
            steering=parse_steering(tensor_type or (), output_tensor_type, token_embedding_type, pure=pure),
            imatrix=imatrix,
            mmproj=list(map(mmproj_ftype_from, mmproj or ())),
            class_token_first=class_token_first,
            vision=list(map(vision_precision_from, vision)) if vision else VISION_PRECISIONS,
            calibration=calibration,
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


def import_(
    decoder: Annotated[Path, typer.Argument(metavar="DECODER.gguf", help="Decoder, of any type.")],
    mmproj: Annotated[Path, typer.Argument(metavar="MMPROJ.gguf", help="Its tower and projector.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the bundle, new.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model, by default the decoder's.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="vicuna (LLaVA 1.5) or chatml, in the place of the decoder's."),
    ] = None,
    chat_template_file: Annotated[
        Path | None, typer.Option(help="Jinja file of a chat template, in the place of the decoder's.")
    ] = None,
    image_token: Annotated[
        str | None, typer.Option(help="What the chat template writes for a picture; by default <image>.")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the decoder, also where a hard link would do.")
    ] = False,
    vision: TowerPrecisions = None,
    calibration: CalibrationPictures = None,
    threads: Threads = None,
    log_json: LogJson = False,
) -> None:
    """Make a bundle of a decoder and an mmproj file of llama.cpp."""
    from acestep_gguf.convert.llama_cpp.gguf_prompt import choose_template
    from acestep_gguf.convert.llama_cpp.pair import import_pair
    from acestep_gguf.verbs.convert import display

    with display(log_json=log_json) as show:
        import_pair(
            decoder,
            mmproj,
            out,
            name=name,
            chat_template=choose_template(chat_template, chat_template_file),
            image_token=image_token,
            copy=copy,
            vision=list(map(vision_precision_from, vision)) if vision else VISION_PRECISIONS,
            calibration=calibration,
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
