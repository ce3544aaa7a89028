"""Verbs that answer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.option_groups import AnswerOptions, EngineOptions, takes_groups
from acestep_gguf.cli.options import (
    AsJson,
    BundleFolder,
    EmbedsFiles,
    Images,
    SystemPrompt,
    Threads,
    TowerPrecision,
)


@takes_groups
def run(
    bundle: BundleFolder,
    question: Annotated[str | None, typer.Argument(help="By default read from standard input.")] = None,
    *,
    image: Images = None,
    embeds: EmbedsFiles = None,
    system_prompt: SystemPrompt = None,
    as_json: AsJson = False,
    answer: AnswerOptions,
    engine: EngineOptions,
) -> None:
    """Answer a question about pictures."""
    from acestep_gguf.verbs.run import run as run_verb

    run_verb(
        bundle,
        question,
        image or [],
        embeds or [],
        system_prompt=system_prompt,
        as_json=as_json,
        engine_options=asdict(engine),
        answer_options=asdict(answer),
    )


@takes_groups
def chat(
    bundle: BundleFolder,
    *,
    image: Images = None,
    embeds: EmbedsFiles = None,
    system_prompt: SystemPrompt = None,
    answer: AnswerOptions,
    engine: EngineOptions,
) -> None:
    """Answer questions in turn, with pictures at any time; /help has the commands."""
    from acestep_gguf.verbs.chat import chat as chat_verb

    chat_verb(
        bundle,
        image or [],
        embeds or [],
        system_prompt=system_prompt,
        engine_options=asdict(engine),
        answer_options=asdict(answer),
    )


def encode(
    bundle: BundleFolder,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="JPEG, PNG or WEBP.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the files, made if need be.")],
    vision: TowerPrecision = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of other pictures.")] = False,
) -> None:
    """Write the image embeds of pictures to files, one a picture, for `run --embeds` on any machine."""
    from acestep_gguf.verbs.encode import encode as encode_verb

    encode_verb(bundle, pictures, out, vision=vision, n_threads=threads, force=force)
