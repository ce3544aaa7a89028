"""``acestep-gguf run``: one question, one answer."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import AsJson, BundleFolder, EmbedsFiles, Images, SystemPrompt
from acestep_gguf.cli.terminal import end_at_once_on_ctrl_c, for_stdout, print_chunks, read_stdin, statistics
from acestep_gguf.errors import PromptError
from acestep_gguf.options import AnswerOptions, EngineOptions

if TYPE_CHECKING:
    from pathlib import Path


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
    import json
    import sys

    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.engine.question import Question
    from acestep_gguf.plan.report import plan_line
    from acestep_gguf.prompt.messages import user_message
    from acestep_gguf.vision.embeds_file import EmbedsFile

    question = question if question is not None else read_stdin()
    if not question.strip():
        raise PromptError("the question is empty: give it after the bundle, or on standard input.")
    pictures: list[Path | EmbedsFile] = [*(image or []), *map(EmbedsFile, embeds or [])]
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    asked = Question([*system, user_message(question, pictures)], options=answer)
    end_at_once_on_ctrl_c()
    with AceStep(bundle, engine, first=asked) as model:
        if as_json:
            print(for_stdout(json.dumps(asdict(model.generate(asked)), ensure_ascii=False)))
            return
        given = print_chunks(model.stream(asked))
    print(plan_line(model.plan), statistics(given), sep="\n", file=sys.stderr)
