"""The command line, a module for each verb; what is heavy is imported in bodies, so that --help is fast."""

import os
import sys
import warnings
from inspect import signature
from typing import Annotated, NoReturn

import typer

from acestep_gguf.cli import (
    batch,
    cache,
    chat,
    check,
    convert,
    demo,
    encode,
    import_,
    info,
    list_,
    plan,
    quantize,
    run,
    tune,
    use,
    verify,
)
from acestep_gguf.cli.default_bundle import VerbOfABundle
from acestep_gguf.cli.option_groups import in_flags
from acestep_gguf.cli.options import BundleFolder
from acestep_gguf.cli.terminal import end_at_once_on_ctrl_c, open_standard_streams, printable
from acestep_gguf.errors import AceStepError

# In the order of --help.
VERBS = (
    convert.convert,
    import_.import_,
    quantize.quantize,
    run.run,
    batch.batch,
    chat.chat,
    use.use,
    list_.list_,
    encode.encode,
    info.info,
    verify.verify,
    check.check,
    plan.plan,
    tune.tune,
    demo.demo,
)

EXAMPLES = {
    run.run: (
        'acestep-gguf run BUNDLE -i photo.jpg "What is this?"',
        'acestep-gguf run -i receipts/ -p "What is the total of each?"  (after `use BUNDLE`)',
        'curl -s URL | acestep-gguf run -i - "Describe this image." --json',
    ),
    batch.batch: ('acestep-gguf batch BUNDLE photos/ -p "Describe this image." -o answers.jsonl',),
    convert.convert: ("acestep-gguf convert CHECKPOINT BUNDLE -q Q4_K_M",),
}

app = typer.Typer(
    name="acestep-gguf",
    help="Turns a LLaVA-layout checkpoint into a small bundle, and answers questions about pictures from it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    of_a_bundle = next(iter(signature(verb).parameters.values())).annotation is BundleFolder
    # After \b, click keeps the lines as they are.
    examples = "\n".join(("\b", "Examples:", *EXAMPLES[verb])) if verb in EXAMPLES else None
    app.command(verb.__name__.rstrip("_"), cls=VerbOfABundle if of_a_bundle else None, epilog=examples)(verb)
app.add_typer(cache.cache, name="cache")


def main() -> None:
    """Run the command line; an error that we raise on purpose is one line, without a traceback."""
    end_at_once_on_ctrl_c()
    open_standard_streams()
    if sys.stdout is None:
        _fail("standard output is closed: redirect it, to /dev/null if it is not wanted.")
    warnings.formatwarning = lambda message, *_where, **_how: f"warning: {printable(message)}\n"
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # at shutdown it would be too late for an error
    except AceStepError as error:
        _fail(in_flags(error))
    except PermissionError as error:
        _fail(f"{error.filename} cannot be used ({error.strerror}): check its permissions.")
    except OSError as error:
        if error.filename is not None:  # writing to standard output names no file, so this is a bug
            raise
        # What is still in its buffer goes nowhere, instead of failing again at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)  # who reads it has seen enough
        _fail(f"the output cannot be written ({error.strerror}): make room for it, or redirect it.")


def _fail(message: object) -> NoReturn:
    print(f"error: {printable(message)}", file=sys.stderr)
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
