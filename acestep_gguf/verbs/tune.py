"""``acestep-gguf tune``: measure which settings suit this machine, and keep them."""

import sys
from dataclasses import asdict
from pathlib import Path

import msgspec

from acestep_gguf.errors import UsageError
from acestep_gguf.plan.tuning import Trial, Tuning
from acestep_gguf.plan.tuning import tune as measure

COLUMNS = "{:<16} {:>6} {:>10} {:>9} {:>7} {:>8}  {}"


def tune(folder: Path, *, quant: str | None, budget_s: float, as_json: bool) -> None:
    """Print what was measured and chosen, as a table or a JSON object, and keep it.

    Raises:
        UsageError: the budget is no number of seconds, or the result cannot be written.
    """
    if not 1 <= budget_s <= 3600:
        raise UsageError(f"--budget is {budget_s:g}: give seconds from 1 to 3600.")
    if not as_json:
        print(f"measuring for about {budget_s:g} s; leave the machine alone meanwhile", file=sys.stderr)
    tuning = measure(folder, quant=quant, budget_s=budget_s)
    try:
        path = tuning.tuned.write()
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}): make room for it."
        ) from error
    if as_json:
        facts = {
            "settings": asdict(tuning.tuned.settings),
            "reason": tuning.tuned.reason,
            "trials": [asdict(trial) for trial in tuning.trials],
            "skipped": tuning.skipped,
            "seconds": tuning.seconds,
            "file": str(path),
        }
        print(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
        return
    print(table(tuning))
    print(f"kept in {path}", file=sys.stderr)


def table(tuning: Tuning) -> str:
    """What was measured, a line for each trial, with a mark at what is used from now on."""
    settings = tuning.tuned.settings
    lines = [COLUMNS.format("setting", "value", "prefill/s", "decode/s", "load s", "tower s", "").rstrip()]
    for trial in tuning.trials:
        mark = "used" if getattr(settings, trial.setting) == trial.value else ""
        lines.append(COLUMNS.format(trial.setting, _value(trial), *_figures(trial), mark).rstrip())
    lines += [f"not measured: {what}" for what in tuning.skipped]
    return "\n".join([*lines, f"\n{tuning.tuned.reason} ({tuning.seconds:.0f} s)"])


def _value(trial: Trial) -> str:
    return {True: "on", False: "off"}[trial.value] if isinstance(trial.value, bool) else str(trial.value)


def _figures(trial: Trial) -> list[str]:
    digits = ((trial.prefill, 1), (trial.decode, 1), (trial.load_s, 2), (trial.tower_s, 2))
    return ["" if figure is None else f"{figure:.{n}f}" for figure, n in digits]
