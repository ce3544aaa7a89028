"""The command line: options here, the work in ``verbs``, imported in the bodies so that --help is fast."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from acestep_gguf.errors import AceStepError
from acestep_gguf.names import ftype_from
from acestep_gguf.params import CACHE_TYPES, FLASH_ATTENTION

app = typer.Typer(
    name="acestep-gguf",
    help="Turns a LLaVA-layout checkpoint into a small bundle, and answers questions about pictures from it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `convert` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# As in llama-quantize.
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors with such a name; repeat."),
]
OutputTensorType = Annotated[str | None, typer.Option(metavar="TYPE", help="Type of output.weight.")]
TokenEmbeddingType = Annotated[str | None, typer.Option(metavar="TYPE", help="Type of token_embd.weight.")]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mixture.")]
ImatrixFile = Annotated[Path | None, typer.Option("--imatrix", help="Importance matrix of llama-imatrix.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show sizes, types, disk and memory; write nothing.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Print what happens as JSON, an object a line.")]


def main() -> None:
    """Run the command line; an error that we raise on purpose is one line, without a traceback."""
    if sys.stdout is None:  # its number would go to the next file that is opened
        _fail("standard output is closed: redirect it, to /dev/null if it is not wanted.")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # at shutdown it would be too late for an error
    except AceStepError as error:
        _fail(error)
    except OSError as error:
        if error.filename is not None:  # writing to standard output names no file, so this is a bug
            raise
        # What is still in its buffer goes nowhere, instead of failing again at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)  # who reads it has seen enough
        _fail(f"the output cannot be written ({error.strerror}): make room for it, or redirect it.")


def _fail(message: object) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("acestep-gguf"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
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
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", help="Threads, by default one for each core.")
    ] = None,
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


@app.command()
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
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", help="Threads, by default one for each core.")
    ] = None,
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


@app.command()
def run(
    bundle: BundleFolder,
    question: Annotated[str | None, typer.Argument(help="By default read from standard input.")] = None,
    *,
    image: Annotated[list[Path] | None, typer.Option(help="Picture, may be repeated.")] = None,
    quant: Annotated[
        str | None, typer.Option("-q", "--quant", help="Decoder; by default the bundle's default.")
    ] = None,
    as_json: AsJson = False,
    n_predict: Annotated[int, typer.Option("-n", "--n-predict", help="Tokens of the answer at most.")] = 512,
    temp: Annotated[float, typer.Option("--temp", help="0 always takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: from all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from tokens of this probability together.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Least probability, relative to the most probable.")] = 0.05,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="Of the draw. Default: random.")] = None,
    repeat_penalty: Annotated[float, typer.Option(help="Against repetition; 1: off.")] = 1.0,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens of prompt and answer; by default up to 8192."),
    ] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Default: one for each CPU.")] = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", help="As in llama.cpp.")] = 2048,
    ubatch_size: Annotated[int, typer.Option("-ub", "--ubatch-size", help="As in llama.cpp.")] = 512,
    n_gpu_layers: Annotated[
        int, typer.Option("-ngl", "--n-gpu-layers", help="Layers on a GPU; -1: all.")
    ] = 0,
    cache_type_k: Annotated[
        str, typer.Option("-ctk", "--cache-type-k", help=f"Type of the K cache: {', '.join(CACHE_TYPES)}.")
    ] = "f16",
    cache_type_v: Annotated[
        str, typer.Option("-ctv", "--cache-type-v", help="Type of the V cache, the same.")
    ] = "f16",
    flash_attn: Annotated[
        str, typer.Option("-fa", "--flash-attn", help=f"Flash attention: {', '.join(FLASH_ATTENTION)}.")
    ] = "auto",
    system_prompt: Annotated[
        str | None,
        typer.Option("-sys", "--system-prompt", help="What to tell the model before the question."),
    ] = None,
) -> None:
    """Answer a question about pictures."""
    from acestep_gguf.verbs.run import run as run_verb

    run_verb(
        bundle,
        question,
        image or [],
        system_prompt=system_prompt,
        as_json=as_json,
        engine_options={
            "quant": quant,
            "n_ctx": ctx_size,
            "n_threads": threads,
            "n_batch": batch_size,
            "n_ubatch": ubatch_size,
            "n_gpu_layers": n_gpu_layers,
            "type_k": cache_type_k,
            "type_v": cache_type_v,
            "flash_attn": flash_attn,
        },
        answer_options={
            "max_tokens": n_predict,
            "temperature": temp,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "repeat_penalty": repeat_penalty,
        },
    )


@app.command()
def info(bundle: BundleFolder, as_json: AsJson = False) -> None:
    """Show what is in a bundle."""
    from acestep_gguf.verbs.info import info as info_verb

    print(info_verb(bundle, as_json=as_json))


@app.command()
def verify(
    bundle: BundleFolder,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without hashes: sizes, headers and graphs only.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Compare each tensor with the checkpoint that the bundle was made from."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is whole, undamaged and what conversion wrote."""
    from acestep_gguf.verbs.verify import verify as verify_verb

    compare = None
    if checkpoint is not None:
        from acestep_gguf.convert.compare import compare_with_checkpoint

        compare = partial(compare_with_checkpoint, bundle, checkpoint)
    verify_verb(bundle, quick=quick, compare=compare, as_json=as_json)


@app.command()
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


if __name__ == "__main__":
    main()
