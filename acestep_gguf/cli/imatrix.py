"""``acestep-gguf imatrix``: an importance matrix from pictures, or from text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acestep_gguf.cli.options import (
    AsJson,
    BundleFolder,
    MaxTiles,
    Threads,
    Verbose,
    engine_option,
    filled,
    path,
)
from acestep_gguf.cli.quality import QUESTIONS
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import UsageError
from acestep_gguf.options import MACHINE, OUTPUT, PICTURES_AND_PROMPT

if TYPE_CHECKING:
    from acestep_gguf.quantize.importance.run import Made
    from acestep_gguf.quantize.importance.samples import Sample


def imatrix(
    bundle: BundleFolder,
    pictures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PICTURES]...",
            help="Files, folders, quoted patterns, .jsonl or .csv tables as of `batch`.",
        ),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(*("-o", "--output"), parser=path, help="File to write.", rich_help_panel=OUTPUT),
    ],
    question: Annotated[
        list[str] | None,
        typer.Option(
            parser=filled,
            metavar="QUESTION",
            help="What to ask about each picture; repeat for more.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="FILE.jsonl",
            help="Rows of images, prompt and, if it is known, answer.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            *("-f", "--file", "--text"),
            parser=path,
            help="Text alone, read as llama-imatrix does, in chunks of --ctx-size.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(min=1, help="Chunks of a text at most.", rich_help_panel=PICTURES_AND_PROMPT),
    ] = None,
    n_predict: Annotated[
        int,
        typer.Option(
            *("-n", "--n-predict"),
            help="Length of an answer in tokens at most.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = 64,
    weighting: Annotated[
        str,
        typer.Option(
            help="What counts: text, pictures, or balanced, both the same. Another one needs no second run.",
            rich_help_panel=OUTPUT,
        ),
    ] = "balanced",
    process_output: Annotated[
        bool,
        typer.Option("--process-output", help="Also for the output matrix.", rich_help_panel=OUTPUT),
    ] = False,
    in_file: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path,
            metavar="FILE",
            help="Imatrix whose sums are added; repeat for more.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Forget what was read, begin anew.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,  # noqa: ARG001 (its callback does all)
    quant: Annotated[
        str | None,
        engine_option("quant", help="Decoder that reads. By default that of most bits.", group=MACHINE),
    ] = None,
    vision: Annotated[
        str | None,
        engine_option(
            "vision", help="Tower: float32 or int8. By default that which lost the least.", group=MACHINE
        ),
    ] = None,
    max_tiles: MaxTiles = None,
    n_ctx: Annotated[
        int | None,
        engine_option(
            "n_ctx", help="Tokens of a sample at most, or of a chunk of text (512).", group=MACHINE
        ),
    ] = None,
    n_ubatch: Annotated[int | None, engine_option("n_ubatch", group=MACHINE)] = None,
    n_gpu_layers: Annotated[int | None, engine_option("n_gpu_layers", group=MACHINE)] = None,
    threads: Threads = None,
) -> None:
    """Make an importance matrix from pictures.

    The decoder with the most bits reads pictures, questions and its own answers. The same command carries on
    where it was stopped.
    """
    from dataclasses import asdict

    from acestep_gguf.cli.imatrix_progress import watching
    from acestep_gguf.options import EngineOptions
    from acestep_gguf.quantize.importance.run import ImatrixOptions, TextFile, make_imatrix
    from acestep_gguf.quantize.importance.samples import picture_samples, read_samples
    from acestep_gguf.quantize.importance.sums import weighting_from

    if sum(map(bool, (pictures, data, file))) > 1:
        raise UsageError(
            "pictures, --data and --file are three kinds of data: give one; --in-file adds others."
        )
    asked: Sequence[Sample] | TextFile = picture_samples(pictures or (), question or QUESTIONS)
    if data is not None:
        asked = read_samples(data)
    elif file is not None:
        asked = TextFile(file, chunks)
    options = ImatrixOptions(
        weighting=weighting_from(weighting),
        max_tokens=n_predict,
        process_output=process_output,
        in_files=in_file or (),
        restart=restart,
    )
    engine = EngineOptions(
        quant=quant,
        vision=vision,
        max_tiles=max_tiles,
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_gpu_layers=n_gpu_layers,
        n_threads=threads,
    )
    with watching() as show:
        made = make_imatrix(
            bundle,
            output,
            asked,
            options,
            dataset=" ".join(pictures or ()) or str(data),
            engine=engine,
            on_progress=show,
        )
    print(json_text({**asdict(made), "path": str(made.path)}) if as_json else summary(made))


def summary(made: "Made") -> str:
    """What was written, and what it comes from."""
    read = ""
    if made.n_samples:
        rows = ", ".join(f"{n_rows:,} of {kind}" for kind, n_rows in made.rows.items() if n_rows)
        with_tower = "" if made.tower is None else f" with the {made.tower} tower"
        read = f", {made.weighting}: {made.n_samples} read by {made.decoder}{with_tower}, tokens {rows}"
    return f"{made.path} has {made.n_entries} matrices{read} ({made.seconds:.0f} s)"
