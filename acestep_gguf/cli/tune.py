"""``acestep-gguf tune``: measure which settings suit this machine, and keep them."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acestep_gguf.cli.options import AsJson, BundleFolder
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import UsageError

if TYPE_CHECKING:
    from acestep_gguf.plan.tuning import Trial, Tuning

COLUMNS: Final = "{:<16} {:>6} {:>10} {:>9} {:>7} {:>8}  {}"


def tune(
    bundle: BundleFolder,
    *,
    quant: Annotated[
        str | None, typer.Option("-q", "--quant", help="Decoder to measure. By default the bundle's default.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which nothing more is tried.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure which settings suit this machine.

    `run`, `chat`, `batch`, `serve` and Python use them from then on.
    """
    from acestep_gguf.plan import tuning

    if not 1 <= budget <= 3600:
        raise UsageError(f"--budget is {budget:g}: give seconds from 1 to 3600.")
    if not as_json:
        print(f"measuring for about {budget:g} s; leave the machine alone meanwhile", file=sys.stderr)
    found = tuning.tune(bundle, quant=quant, budget_s=budget)
    try:
        path = found.tuned.write()
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}): make room for it."
        ) from error
    if as_json:
        facts = {
            "settings": asdict(found.tuned.settings),
            "reason": found.tuned.reason,
            "trials": [asdict(trial) for trial in found.trials],
            "skipped": found.skipped,
            "seconds": found.seconds,
            "file": str(path),
        }
        print(json_text(facts))
        return
    print(table(found))
    print(f"kept in {path}", file=sys.stderr)


def table(tuning: "Tuning") -> str:
    """What was measured, a line for each trial, with a mark at what is used from now on."""
    settings = tuning.tuned.settings
    lines = [COLUMNS.format("setting", "value", "prefill/s", "decode/s", "load s", "tower s", "").rstrip()]
    for trial in tuning.trials:
        mark = "used" if getattr(settings, trial.setting) == trial.value else ""
        lines.append(COLUMNS.format(trial.setting, _value(trial), *_figures(trial), mark).rstrip())
    lines += [f"not measured: {what}" for what in tuning.skipped]
    return "\n".join([*lines, f"\n{tuning.tuned.reason} ({tuning.seconds:.0f} s)"])


def _value(trial: "Trial") -> str:
    return {True: "on", False: "off"}[trial.value] if isinstance(trial.value, bool) else str(trial.value)


def _figures(trial: "Trial") -> list[str]:
    digits = ((trial.prefill, 1), (trial.decode, 1), (trial.load_s, 2), (trial.tower_s, 2))
    return ["" if figure is None else f"{figure:.{n}f}" for figure, n in digits]
