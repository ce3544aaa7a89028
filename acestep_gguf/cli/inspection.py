"""Verbs that look at a bundle."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import AsJson, BundleFolder


def info(bundle: BundleFolder, as_json: AsJson = False) -> None:
    """Show what is in a bundle."""
    from acestep_gguf.verbs.info import info as info_verb

    print(info_verb(bundle, as_json=as_json))


def verify(
    bundle: BundleFolder,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without hashes: sizes, headers and graphs only.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Compare each tensor with the checkpoint that the bundle was made from."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is whole, undamaged and what conversion wrote."""
    from acestep_gguf.verbs.verify import verify as verify_verb

    compare = None
    if checkpoint is not None:
        from acestep_gguf.convert.compare import compare_with_checkpoint

        compare = partial(compare_with_checkpoint, bundle, checkpoint)
    verify_verb(bundle, quick=quick, compare=compare, as_json=as_json)
