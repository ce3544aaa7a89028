"""Verbs that measure this machine."""

from typing import Annotated

import typer

from acestep_gguf.cli.options import AsJson, BundleFolder


def tune(
    bundle: BundleFolder,
    *,
    quant: Annotated[
        str | None, typer.Option("-q", "--quant", help="Decoder; by default the bundle's default.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which nothing new is tried.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure which settings suit this machine; all other verbs use them from then on."""
    from acestep_gguf.verbs.tune import tune as tune_verb

    tune_verb(bundle, quant=quant, budget_s=budget, as_json=as_json)
