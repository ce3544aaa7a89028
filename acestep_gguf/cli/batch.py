"""``acestep-gguf batch``: many pictures, one table of answers."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import BundleFolder, Exact, SystemPrompt, Verbose, one_at_a_time, path, text
from acestep_gguf.cli.terminal import end_on_ctrl_c
from acestep_gguf.errors import UsageError
from acestep_gguf.options import OUTPUT, PICTURES_AND_PROMPT, AnswerOptions, EngineOptions

# As many answers together as suit the machine. Nothing is cached: the decoder's states of a folder of
# pictures take gigabytes, and would drive out those of other verbs.
MANY: Final = EngineOptions(n_parallel=-1, cache=False)


@takes_groups
def batch(
    bundle: BundleFolder,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURES...",
            help="Files, folders, quoted patterns, .jsonl or .csv tables; - for paths on standard input.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            *("-o", "--output"),
            parser=path,
            help="Table to write: .jsonl, .csv or .parquet.",
            rich_help_panel=OUTPUT,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            *("-p", "--prompt"),
            parser=text,
            help="Question about each picture; repeat for more.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            *("-r", "--recursive"),
            help="Take pictures from folders in folders, too.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = False,
    sidecar: Annotated[
        str | None,
        typer.Option(
            "--sidecar",
            help="Write answers beside pictures, too: txt or json.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="Ask again what failed before.", rich_help_panel=OUTPUT),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Forget earlier answers, begin anew.", rich_help_panel=OUTPUT),
    ] = False,
    exact: Exact = False,
    system_prompt: SystemPrompt = None,
    verbose: Verbose = False,  # noqa: ARG001 (its callback does all)
    answer: AnswerOptions,
    engine: EngineOptions = MANY,
) -> None:
    """Ask about many pictures, and write a table.

    The same command carries on where it was stopped.
    """
    from acestep_gguf.batch.inputs import entries_of
    from acestep_gguf.batch.run import Batch
    from acestep_gguf.batch.settings import settings_of
    from acestep_gguf.batch.sidecars import SIDECAR_KINDS
    from acestep_gguf.batch.tasks import tasks_of
    from acestep_gguf.bundle.schema import Bundle
    from acestep_gguf.cli.batch_progress import BatchProgress
    from acestep_gguf.engine.engine import AceStep

    kind = next((kind for kind in SIDECAR_KINDS if kind == sidecar), None)
    if sidecar is not None and kind is None:
        raise UsageError(f"--sidecar is {sidecar!r}: give {' or '.join(SIDECAR_KINDS)}.")
    if not all(question.strip() for question in prompt or ()):
        raise UsageError("a --prompt is empty: ask something.")
    if exact:
        engine = one_at_a_time(engine, MANY)
    stdin = None if sys.stdin is None else sys.stdin.buffer
    read = Bundle.read(bundle)
    settings = settings_of(read, engine, answer, prompts=prompt or (), system_prompt=system_prompt)
    progress = BatchProgress(output)
    end_on_ctrl_c(progress.interrupt)
    entries = entries_of(pictures, recursive=recursive, stdin=stdin, output=output)
    tasks = tasks_of(entries, prompt or ())
    if any(task.images for task in tasks):
        read.tower()  # without one, each row would have the same error
    batch = Batch(
        tasks=tasks,
        output=output,
        settings=settings,
        options=answer,
        system_prompt=system_prompt,
        sidecar=kind,
        retry_errors=retry_errors,
        restart=restart,
    )
    summary = batch.run(lambda: AceStep(bundle, engine, longest=batch.longest()), progress.watching)
    progress.finish(summary)
    if summary.errors:
        sys.exit(1)
