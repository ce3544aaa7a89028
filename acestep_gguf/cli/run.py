"""``acestep-gguf run``: one question, one answer."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import (
    AsJson,
    BundleFolder,
    EmbedsFiles,
    Images,
    Quiet,
    SystemPrompt,
    Verbose,
    path,
    text,
)
from acestep_gguf.cli.pictures import STDIN, fewer_tiles, picture_from
from acestep_gguf.cli.status_line import StatusLine
from acestep_gguf.cli.terminal import (
    for_stdout,
    has_unread_input,
    print_chunks,
    read_question,
    read_stdin,
    statistics,
)
from acestep_gguf.errors import BundleError, PromptError, UsageError
from acestep_gguf.options import PICTURES_AND_PROMPT, AnswerOptions, EngineOptions


@takes_groups
def run(
    bundle: BundleFolder,
    question: Annotated[
        list[str] | None,
        typer.Argument(
            parser=text, metavar="[QUESTION]", help="In quotes. Without it, or as -, standard input is read."
        ),
    ] = None,
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            *("-p", "--prompt"),
            parser=text,
            help="The question, as in llama.cpp.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            *("-f", "--file"),
            parser=path,
            help="File with the question.",
            rich_help_panel=PICTURES_AND_PROMPT,
        ),
    ] = None,
    image: Images = None,
    embeds: EmbedsFiles = None,
    system_prompt: SystemPrompt = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    answer: AnswerOptions,
    engine: EngineOptions,
) -> None:
    """Answer a question about pictures."""
    import json
    import sys

    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.engine.question import Question
    from acestep_gguf.plan.report import plan_line
    from acestep_gguf.prompt.messages import user_message
    from acestep_gguf.vision.embeds_file import EmbedsFile

    is_written = prompt is not None or file is not None
    is_piped = not is_written and question in (None, [], ["-"])
    if is_piped and STDIN in (image or ()):
        raise UsageError("a picture and the question cannot both be standard input: write the question.")
    if is_written:
        words = _written_question(question or [], prompt, file)
    else:
        words = _piped_question(bundle) if is_piped else _typed_question(question or [])
    pictures = [*map(picture_from, image or []), *map(EmbedsFile, embeds or [])]
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    engine = replace(engine, n_parallel=1)  # it is one answer; more would only take memory
    asked = Question([*system, user_message(words, pictures)], options=answer)
    with (
        StatusLine(wanted=not (quiet or as_json or verbose)) as status,
        AceStep(bundle, engine, first=asked, on_progress=status.show) as model,
    ):
        if as_json:
            print(for_stdout(json.dumps(asdict(model.generate(asked)), ensure_ascii=False)))
        else:
            given = print_chunks(status.until_text(model.stream(asked)))
            if not quiet:
                told = [plan_line(model.plan), statistics(given)]
                if image and not embeds and model.bundle.image is not None and engine.max_tiles is None:
                    told += fewer_tiles(model.bundle.image, len(pictures), given.usage.image_tokens)
                print(*told, sep="\n", file=sys.stderr)
    if not is_piped and has_unread_input():  # not before: it may have come slowly
        print(
            "warning: standard input was not read, because there was a question. Leave the question out to "
            "ask what is there, or add </dev/null.",
            file=sys.stderr,
        )


def _written_question(words: Sequence[str], prompt: str | None, file: Path | None) -> str:
    """The question of --prompt or --file."""
    if words or (prompt is not None and file is not None):
        raise UsageError("there are two questions: give one, in words, with --prompt or with --file.")
    return _not_empty(read_question(file) if file is not None else str(prompt))


def _typed_question(words: Sequence[str]) -> str:
    """The only one of ``words``, if it is a question."""
    for word in words:
        if os.path.isdir(word):
            raise BundleError(f"{word} is a folder, but neither a bundle nor a question: check the path.")
        if os.path.isfile(word):
            raise UsageError(
                f"{word} is a file, not a question: write -i before pictures (or --embeds), as in "
                '-i a.png b.png "QUESTION".'
            )
    if len(words) > 1:
        raise UsageError(
            f'there are {len(words)} questions: put quotes around one, as in "{" ".join(words)}".'
        )
    return _not_empty(words[0])


def _piped_question(bundle: Path) -> str:
    """The question on standard input; ``bundle`` is looked at first, since it may be a question."""
    if not os.path.isdir(bundle):
        raise BundleError(
            f'{bundle} is not a folder: write the bundle first, as in run BUNDLE "QUESTION", or choose a '
            "default once with `acestep-gguf use BUNDLE`."
        )
    return _not_empty(read_stdin())


def _not_empty(question: str) -> str:
    if not question.strip():
        raise PromptError("the question is empty: give it after the bundle, or on standard input.")
    return question
