"""``acestep-gguf use``: the bundle of commands that name none."""

from typing import Annotated

import typer

from acestep_gguf.cli.options import text
from acestep_gguf.cli.terminal import for_stdout
from acestep_gguf.errors import UsageError


def use(
    bundle: Annotated[
        str, typer.Argument(parser=text, metavar="BUNDLE", help="Folder of a bundle, or a name of `list`.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(parser=text, help="Name to list it under. By default the folder's.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Take this name off the list; the bundle stays.")
    ] = False,
) -> None:
    """Choose the bundle that is used where none is named."""
    from acestep_gguf.bundle.library import Library

    if forget and name is not None:
        raise UsageError("--forget takes a name off the list: leave --name out.")
    library = Library.read()
    library = library.without(bundle) if forget else library.using(bundle, name)
    library.write()
    if not forget and library.default:
        print(for_stdout(f"{library.default} is the default: {library.bundles[library.default]}"))
