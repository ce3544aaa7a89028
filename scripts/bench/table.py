"""The table of bench_answers.py: what was measured, against what it should be."""

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from acestep_gguf.cpus import cpu_name
from scripts.bench.process_cost import GIB, Cost


@dataclass(frozen=True)
class Row:
    """One line of the table; ``figure`` is held against ``bar``."""

    what: str
    ours: str
    peer: str
    figure: float
    bar: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.figure <= self.bar if self.at_most else self.figure >= self.bar

    def cells(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        verdict = "yes" if self.holds else "**no**"
        return [self.what, self.ours, self.peer, f"{self.figure:.4g}", f"{sign} {self.bar:g}", verdict]


@dataclass(frozen=True)
class Note:
    """A figure without a bar."""

    what: str
    figure: str


Rows = Iterator[Row | Note]


def report(rows: Iterable[Row | Note], costs: Mapping[str, list[Cost]], conditions: str) -> bool:
    """Print the tables; whether all bars hold."""
    rows = list(rows)
    bars = [row for row in rows if isinstance(row, Row)]
    print(f"\n{os.cpu_count()} cores, {cpu_name()}; {conditions}\n")
    print("| | ours | peer | figure | bar | holds |")
    print("|---|---|---|---|---|---|")
    for row in bars:
        print(f"| {' | '.join(row.cells())} |")
    print()
    for note in rows:
        if isinstance(note, Note):
            print(f"{note.what}: {note.figure}")
    print("\n| peak memory | anonymous GiB | resident GiB |")
    print("|---|---|---|")
    for name, runs in costs.items():
        peaks = [[run.anonymous for run in runs], [run.resident for run in runs]]
        print(f"| {name} | " + " | ".join(f"{statistics.median(peak) / GIB:.2f}" for peak in peaks) + " |")
    return all(row.holds for row in bars)
