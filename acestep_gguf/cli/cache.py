"""Verbs about what is kept of pictures between processes."""

import typer

from acestep_gguf.cli.options import AsJson

cache = typer.Typer(
    help="What is kept of pictures, so that the next question about one is answered at once.",
    no_args_is_help=True,
)


@cache.command()
def info(as_json: AsJson = False) -> None:
    """Show where it is, how much, and how much it may become."""
    from acestep_gguf.verbs.cache import cache_info

    print(cache_info(as_json=as_json))


@cache.command()
def clear() -> None:
    """Remove all of it."""
    from acestep_gguf.verbs.cache import clear_cache

    print(clear_cache())
