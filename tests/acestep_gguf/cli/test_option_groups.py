import inspect
import re
from dataclasses import asdict, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from acestep_gguf.cli.batch import batch
from acestep_gguf.cli.chat import chat
from acestep_gguf.cli.convert import convert
from acestep_gguf.cli.option_groups import in_flags, options_of, takes_groups
from acestep_gguf.cli.options import one_at_a_time
from acestep_gguf.cli.quantize import quantize
from acestep_gguf.cli.run import run
from acestep_gguf.cli.steering_options import SteeringOptions
from acestep_gguf.errors import UsageError
from acestep_gguf.options import (
    CACHE,
    GROUPS,
    MACHINE,
    OUTPUT,
    PICTURES_AND_PROMPT,
    QUANTIZATION,
    SAMPLING,
    SERVER,
    AnswerOptions,
    EngineOptions,
)
from acestep_gguf.server.settings import ServerSettings
from tests.support.command_line import acestep

SMALL = EngineOptions(n_ctx=77)
OF_OTHERS = (SERVER, QUANTIZATION)


def test_the_command_line_has_every_option() -> None:
    def flags(group: type) -> set[str]:
        return {parameter.name for parameter in options_of(group)}

    assert flags(EngineOptions) == {field.name for field in fields(EngineOptions)}
    assert flags(AnswerOptions) == {field.name for field in fields(AnswerOptions)} - {"exact"}
    hidden = {"exact", "head_within_s", "body_within_s"}
    assert flags(ServerSettings) == {field.name for field in fields(ServerSettings)} - hidden


def test_defaults_are_those_of_python() -> None:
    # A program leaves nothing on disk unless it is told to.
    for group, expected in (
        (EngineOptions, {"cache"}),
        (AnswerOptions, set()),
        (ServerSettings, {"max_body"}),
    ):
        defaults = asdict(group())
        assert {
            option.name for option in options_of(group) if option.default != defaults[option.name]
        } == expected
    assert ServerSettings(max_body="64MiB").max_body_bytes == ServerSettings().max_body_bytes


def test_help_shows_options_in_groups() -> None:
    shown = acestep("run", "--help").stdout
    sections = dict(re.findall(r"^([A-Z][\w ]+):\n(.*?)(?:\n\n|\Z)", shown, re.MULTILINE | re.DOTALL))
    assert [*sections] == ["Arguments", *(group for group in GROUPS if group not in OF_OTHERS), "Options"]
    for flag, group in (
        ("--image PICTURE...", PICTURES_AND_PROMPT),
        ("--n-predict", OUTPUT),
        ("--seed", SAMPLING),
        ("--threads ", MACHINE),
        ("--no-cache", CACHE),
        ("--help", "Options"),
    ):
        assert [name for name, lines in sections.items() if flag in lines] == [group]
    assert sections["Options"].count("--") == 1


@pytest.mark.parametrize(
    ("message", "settings", "shown"),
    [
        ("n_ctx is 0: raise n_ctx.", ["n_ctx"], "--ctx-size is 0: raise --ctx-size."),
        ("n_ctx_train is left, n_ctx=4096 fits.", ["n_ctx"], "n_ctx_train is left, --ctx-size 4096 fits."),
        ("type_k=q8_0 type_v=q8_0", ["type_k", "type_v"], "--cache-type-k q8_0 --cache-type-v q8_0"),
        ("use_mmap=True; use_mmap=False", ["use_mmap"], "--mmap; --no-mmap"),
        ("allow_paging=True or max_tokens", ["allow_paging", "max_tokens"], "--allow-paging or --n-predict"),
        ("lose it with allow_paging=True.", ["allow_paging"], "lose it with --allow-paging."),
        ("temperature is hot", [], "temperature is hot"),
        (
            "/output/a.csv, output/b: another output.",
            ["output"],
            "/output/a.csv, output/b: another --output.",
        ),
        ("output.csv, a-output: output, or", ["output"], "output.csv, a-output: --output, or"),
        ("chat_template is missing", ["chat_template"], "--chat-template is missing"),
        (
            "max_tokens or max_answer_tokens",
            ["max_tokens", "max_answer_tokens"],
            "--n-predict or --max-tokens",
        ),
        ("timeout_s is -1", ["timeout_s"], "--timeout is -1"),
        ("with insecure=True.", ["insecure"], "with --insecure."),
    ],
)
def test_errors_name_flags(message: str, settings: list[str], shown: str) -> None:
    assert in_flags(UsageError(message, settings=settings)) == shown


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
        ("hello", 5, EngineOptions(n_ctx=77, type_k="f32", cache=True), AnswerOptions(temperature=0.5)),
    ]
    assert "What it does." in CliRunner().invoke(app, ["--help"]).output


def test_a_verb_has_defaults_of_its_own() -> None:
    got = []

    @takes_groups
    def verb(*, engine: EngineOptions = SMALL) -> None:
        got.append(engine)

    app = typer.Typer()
    app.command()(verb)
    for arguments in ([], ["-c", "5", "--cache"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert got == [SMALL, EngineOptions(n_ctx=5, cache=True)]


def test_run_chat_and_batch_have_the_same_options_of_both_groups() -> None:
    shared = {option.name for group in (EngineOptions, AnswerOptions) for option in options_of(group)}
    for verb in (run, chat, batch):
        assert shared < inspect.signature(verb).parameters.keys()


def test_convert_and_quantize_have_the_same_options_of_types() -> None:
    shared = {option.name for option in options_of(SteeringOptions)}
    assert {"tensor_type", "imatrix"} < shared
    for verb in (convert, quantize):
        assert shared < inspect.signature(verb).parameters.keys()


def test_exact_is_one_answer_at_a_time() -> None:
    many = EngineOptions(n_parallel=-1)
    for given in (many, EngineOptions(n_parallel=1)):
        assert one_at_a_time(given, many).n_parallel == 1
    with pytest.raises(UsageError, match="not --parallel 2"):
        one_at_a_time(EngineOptions(n_parallel=2), many)
