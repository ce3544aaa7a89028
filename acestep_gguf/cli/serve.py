"""``acestep-gguf serve``: bundles answer over HTTP, as OpenAI's clients ask."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import Exact, Verbose, bundle_folder, filled, one_at_a_time, path, text
from acestep_gguf.errors import MissingPackageError, UsageError
from acestep_gguf.options import SERVER, EngineOptions

KEY_VARIABLE: Final = "ACESTEP_GGUF_API_KEY"
MAX_KEY_FILE_BYTES: Final = 2**16
SEVERAL: Final = EngineOptions(n_parallel=-1, cache=True)
# Tokens of a question that are read between two tokens of the answers beside it (docs/server.md).
READ_AT_A_TIME: Final = 256


_option: Final = partial(typer.Option, rich_help_panel=SERVER)


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
    host: Annotated[
        str,
        _option(
            "--host",
            parser=filled,
            metavar="ADDRESS",
            help="Address. By default only this machine reaches it.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", help="Port of it; 0 takes a free one.")] = 8080,
    api_key: Annotated[
        list[str] | None,
        _option(
            "--api-key",
            parser=text,
            metavar="KEY",
            help=f"Key that requests must have; repeat for more. Others see it here: better {KEY_VARIABLE}.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, _option("--api-key-file", parser=path, metavar="FILE", help="File of keys, one a line.")
    ] = None,
    insecure: Annotated[
        bool, _option("--insecure", help="Let everybody in who reaches the address, without a key.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        _option(
            "--allowed-host",
            parser=filled,
            metavar="NAME",
            help="Name by which this server is reached; repeat.",
        ),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        _option(
            "--allowed-origin",
            parser=filled,
            metavar="ORIGIN",
            help="Web page that may ask: https://…; repeat.",
        ),
    ] = None,
    allow_path: Annotated[
        Path | None,
        _option(
            "--allow-path", parser=path, metavar="FOLDER", help="Folder whose pictures file: URLs may name."
        ),
    ] = None,
    ssl_cert_file: Annotated[
        Path | None,
        _option("--ssl-cert-file", parser=path, metavar="FILE", help="Certificate for TLS, as PEM."),
    ] = None,
    ssl_key_file: Annotated[
        Path | None, _option("--ssl-key-file", parser=path, metavar="FILE", help="Its private key, as PEM.")
    ] = None,
    max_body: Annotated[
        str, _option("--max-body", parser=filled, metavar="SIZE", help="Size of a request at most.")
    ] = "64MiB",
    max_images: Annotated[int, _option("--max-images", help="Pictures of a request at most.")] = 16,
    max_pixels: Annotated[int, _option("--max-pixels", help="Pixels of a picture at most.")] = 50 * 10**6,
    max_tokens: Annotated[int, _option("--max-tokens", help="Tokens of an answer at most.")] = 4096,
    queue: Annotated[int, _option("--queue", help="Requests that may wait for a place.")] = 32,
    timeout: Annotated[float, _option("--timeout", help="Seconds after which an answer is cut.")] = 600.0,
    drain: Annotated[
        float, _option("--drain", help="Seconds that running answers have when the server is stopped.")
    ] = 30.0,
    exact: Exact = False,
    verbose: Verbose = False,  # noqa: ARG001 (its callback does all)
    engine: EngineOptions = SEVERAL,
) -> None:
    """Answer over HTTP, as OpenAI's clients ask."""
    from acestep_gguf.bundle.library import default_bundle
    from acestep_gguf.sizes import parse_size

    try:
        from acestep_gguf.server.listening import serve as serve_bundles
        from acestep_gguf.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), "server") from error
    folders = bundles or [folder for folder in [default_bundle()] if folder]
    if exact:
        engine = one_at_a_time(engine, SEVERAL)
    elif engine.n_batch is None:
        engine = replace(engine, n_batch=READ_AT_A_TIME)
    if engine.n_guesses:
        raise UsageError(
            "a server writes several answers together, none guessed ahead: leave out draft and spec_type.",
            settings=["draft", "spec_type"],
        )
    if not folders:
        raise UsageError(
            "there is no bundle to serve: name one, or choose a default with `acestep-gguf use`."
        )
    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=_keys(api_key or [], api_key_file),
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=tuple(allowed_origin or ()),
        allow_path=allow_path,
        ssl_cert_file=ssl_cert_file,
        ssl_key_file=ssl_key_file,
        max_body=parse_size(max_body, "--max-body"),
        max_images=max_images,
        max_pixels=max_pixels,
        max_tokens=max_tokens,
        queue=queue,
        timeout_s=timeout,
        drain_s=drain,
        exact=exact,
    )
    serve_bundles(
        folders, engine, settings, show=lambda url: print(f"listening on {url}", file=sys.stderr, flush=True)
    )


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """All keys: given, of the environment, and of a file.

    Raises:
        UsageError: the file cannot be read, or has none.
    """
    keys = [*given, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    if file is None:
        return tuple(keys)
    try:
        with file.open("rb") as opened:
            lines = opened.read(MAX_KEY_FILE_BYTES).decode("ascii").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise UsageError(f"{file} cannot be read ({reason}): give a file of keys.") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError(f"{file} has no key in it: write one, or make it with `openssl rand -hex 32`.")
    return (*keys, *found)
