"""``acestep-gguf serve``: bundles answer over HTTP, as OpenAI's clients ask."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import Exact, Verbose, bundle_folder, one_at_a_time
from acestep_gguf.errors import MissingPackageError, UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.server.settings import ServerSettings

SEVERAL: Final = EngineOptions(n_parallel=-1, cache=True)
# Tokens of a question that are read between two tokens of the answers beside it (docs/server.md).
READ_AT_A_TIME: Final = 256


@takes_groups
def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=bundle_folder,
            metavar="[BUNDLE]...",
            help="Folders or names. By default what `use` chose. The first answers where none is named.",
        ),
    ] = None,
    *,
    exact: Exact = False,
    verbose: Verbose = False,  # noqa: ARG001 (its callback does all)
    settings: ServerSettings,
    engine: EngineOptions = SEVERAL,
) -> None:
    """Answer over HTTP, as OpenAI's clients ask."""
    from acestep_gguf.bundle.library import default_bundle

    try:
        from acestep_gguf.server.listening import serve as serve_bundles
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), "server") from error
    folders = bundles or [folder for folder in [default_bundle()] if folder]
    if not folders:
        raise UsageError(
            "there is no bundle to serve: name one, or choose a default with `acestep-gguf use`."
        )
    if engine.n_guesses:
        raise UsageError(
            "a server writes several answers together, none guessed ahead: leave out draft and spec_type.",
            settings=["draft", "spec_type"],
        )
    if exact:
        engine, settings = one_at_a_time(engine, SEVERAL), replace(settings, exact=True)
    elif engine.n_batch is None:
        engine = replace(engine, n_batch=READ_AT_A_TIME)
    serve_bundles(
        folders, engine, settings, show=lambda url: print(f"listening on {url}", file=sys.stderr, flush=True)
    )
