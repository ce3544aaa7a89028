"""``acestep-gguf cache``: what is kept of pictures between processes."""

import typer

from acestep_gguf.cli.options import TYPER, AsJson
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import UsageError

cache = typer.Typer(
    help="Show or clear what is kept of pictures.\n\n"
    "It is kept so that the next question about a picture is answered at once.",
    no_args_is_help=True,
    add_completion=False,
    **TYPER,
)


@cache.command()
def info(as_json: AsJson = False) -> None:
    """Show the folder, its size, and how large it may become."""
    from acestep_gguf.storage.disk_cache import DiskCache, default_folder

    kept = DiskCache(default_folder())
    contents = kept.contents()
    if as_json:
        facts = {
            "folder": str(kept.folder),
            "entries": contents.entries,
            "bytes": contents.bytes,
            "limit": contents.limit,
        }
        print(json_text(facts))
        return
    print(f"folder    {kept.folder}")
    print(f"entries   {contents.entries}")
    print(f"size      {contents.bytes / 1e6:.1f} MB")
    print(f"limit     {contents.limit / 1e6:.1f} MB")


@cache.command()
def clear() -> None:
    """Remove all that is kept."""
    from acestep_gguf.storage.disk_cache import DiskCache, default_folder

    kept = DiskCache(default_folder())
    contents = kept.contents()
    try:
        kept.clear()
    except OSError as error:
        raise UsageError(
            f"{kept.folder} cannot be cleared ({error.strerror}): check its permissions."
        ) from error
    print(f"removed {contents.entries} entries, {contents.bytes / 1e6:.1f} MB, from {kept.folder}")
