"""``acestep-gguf score``: what a bundle's decoders get in the benchmarks that the card quotes."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from acestep_gguf.cli.options import (
    AsJson,
    BundleFolder,
    Exact,
    Threads,
    TowerPrecision,
    Verbose,
    engine_option,
    one_at_a_time,
    path,
)
from acestep_gguf.cli.terminal import end_on_ctrl_c, json_text, printable
from acestep_gguf.options import MACHINE, OUTPUT, EngineOptions

MANY: Final = EngineOptions(n_parallel=-1)


def score(
    bundle: BundleFolder,
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="mme, mmbench, seedbench or mathvista.")
    ],
    file: Annotated[
        Path, typer.Argument(parser=path, metavar="FILE", help="As it was published: a file or a folder.")
    ],
    *,
    quant: Annotated[
        list[str] | None,
        typer.Option("-q", "--quant", help="Decoder; repeat for more. By default the bundle's default."),
    ] = None,
    vision: TowerPrecision = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Whose words to ask in: vlmevalkit, lmms-eval or official. By default the usual."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask so many questions only, the first ones.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            *("-o", "--output"),
            parser=path,
            metavar="FOLDER",
            help="Folder for all answers. By default BENCHMARK-scores.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    n_predict: Annotated[
        int,
        typer.Option("-n", "--n-predict", help="Tokens of an answer at most.", rich_help_panel=OUTPUT),
    ] = 512,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget earlier answers, begin anew.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
    n_ctx: Annotated[
        int | None,
        engine_option(
            "n_ctx", help="Tokens of question and answer together. By default up to 8192.", group=MACHINE
        ),
    ] = None,
    threads: Threads = None,
    n_parallel: Annotated[
        int,
        engine_option("n_parallel", help="Answers to write together; -1: as many as fit.", group=MACHINE),
    ] = MANY.n_parallel,
    rpc: Annotated[str | None, engine_option("rpc", group=MACHINE)] = None,
    exact: Exact = False,
    verbose: Verbose = False,  # noqa: ARG001 (its callback does all)
) -> None:
    """Score decoders in MME, MMBench, SEED-Bench or MathVista.

    The same command carries on where it was stopped, and asks again what failed.
    """
    from acestep_gguf.cli.batch_progress import BatchProgress
    from acestep_gguf.score.report import table
    from acestep_gguf.score.run import score_bundle

    options = EngineOptions(vision=vision, n_ctx=n_ctx, n_threads=threads, n_parallel=n_parallel, rpc=rpc)
    if exact:
        options = one_at_a_time(options, MANY)
    folder = output or Path(f"{benchmark}-scores")
    progress = BatchProgress(folder)
    end_on_ctrl_c(progress.interrupt)
    report = score_bundle(
        bundle,
        benchmark,
        file,
        output=folder,
        quants=quant or (),
        prompts=prompts,
        limit=limit,
        max_tokens=n_predict,
        options=options,
        restart=restart,
        watching=progress.watching,
    )
    print(json_text(report) if as_json else table(report))
    if report.errors:
        print(
            printable(f"{report.errors} questions failed, and count as wrong: the same command asks again"),
            file=sys.stderr,
        )
        sys.exit(1)
