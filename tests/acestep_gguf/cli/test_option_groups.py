import inspect
from dataclasses import asdict, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from acestep_gguf.cli.chat import chat
from acestep_gguf.cli.option_groups import AnswerOptions, EngineOptions, takes_groups
from acestep_gguf.cli.run import run
from acestep_gguf.engine.engine import AceStep

# Arguments that are no options: they come from what is asked, and from how.
NO_OPTIONS = {"self", "bundle", "pictures", "n_text", "prompt", "images", "stop", "exact"}


@pytest.mark.parametrize(
    ("group", "function"),
    [(EngineOptions, AceStep), (AnswerOptions, AceStep.generate), (AnswerOptions, AceStep.stream)],
)
def test_a_group_has_the_arguments_of_its_function(group: type, function: object) -> None:
    arguments = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert {field.name for field in fields(group)} == arguments.keys() - NO_OPTIONS


def test_defaults_are_those_of_the_function() -> None:
    arguments = inspect.signature(AceStep.generate).parameters
    assert asdict(AnswerOptions()) == {name: arguments[name].default for name in asdict(AnswerOptions())}
    arguments = inspect.signature(AceStep).parameters
    differing = {name for name, value in asdict(EngineOptions()).items() if arguments[name].default != value}
    assert differing == {"cache"}  # a library writes nothing to disk unless it is told to


def test_a_verb_gets_its_groups_from_options() -> None:
    got = []

    @takes_groups
    def verb(
        word: str,
        number: Annotated[int, typer.Option("-x")] = 1,
        *,
        engine: EngineOptions,
        answer: AnswerOptions,
    ) -> None:
        """What it does."""
        got.append((word, number, engine, answer))

    app = typer.Typer()
    app.command()(verb)
    done = CliRunner().invoke(app, ["hello", "-c", "77", "-x", "5", "--temp", "0.5", "-ctk", "f32"])
    assert done.exit_code == 0, done.output
    assert got == [
        ("hello", 5, EngineOptions(n_ctx=77, type_k="f32"), AnswerOptions(temperature=0.5)),
    ]
    assert "What it does." in CliRunner().invoke(app, ["--help"]).output


def test_run_and_chat_have_the_same_options_of_both_groups() -> None:
    shared = {field.name for group in (EngineOptions, AnswerOptions) for field in fields(group)}
    for verb in (run, chat):
        assert shared < inspect.signature(verb).parameters.keys()
