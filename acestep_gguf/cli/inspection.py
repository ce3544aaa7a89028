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


def check(
    bundle: BundleFolder,
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="PICTURE", help="By default those of the demo.")
    ] = None,
    *,
    question: Annotated[
        list[str] | None, typer.Option(help="Ask this about each picture; may be repeated.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Compare with the checkpoint in transformers, not with the bundle's best."),
    ] = None,
    n_predict: Annotated[int, typer.Option("-n", "--n-predict", help="Tokens of an answer at most.")] = 64,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures and answers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask all decoders and towers of a bundle the same, and show how far each is from the best."""
    from acestep_gguf.verbs.check import check as check_verb

    check_verb(
        bundle,
        pictures or [],
        question or [],
        checkpoint=checkpoint,
        max_tokens=n_predict,
        as_json=as_json,
        html=html,
    )
