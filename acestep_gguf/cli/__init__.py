"""The command line: its verbs are in verbs.py, a module for each; here is what holds for all of them."""

import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from acestep_gguf.cli.options import TYPER
from acestep_gguf.cli.terminal import end_at_once_on_ctrl_c, open_standard_streams, printable
from acestep_gguf.cli.verbs import Verbs
from acestep_gguf.errors import AceStepError

app = typer.Typer(
    name="acestep-gguf",
    cls=Verbs,
    help="Turns a vision-language checkpoint into a small bundle, and answers questions about pictures.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    **TYPER,
)


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
        from acestep_gguf.cli.option_groups import in_flags

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
