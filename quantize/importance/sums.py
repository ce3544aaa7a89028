"""Sums of squares of what each matrix of weights was multiplied with, apart for each kind of token.

One pass over the data gives them all; how much pictures and text weigh is decided when they are put together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import ImatrixError, UsageError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# What a row belongs to: all text up to the answer, a picture, or the answer.
Kind = Literal["prompt", "picture", "answer"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Weighting = Literal["text", "pictures", "balanced"]
# Groups of kinds of which each weighs the same; within one, each row does.
GROUPS: Final[Mapping[Weighting, tuple[tuple[Kind, ...], ...]]] = {
    "text": (("prompt", "answer"),),
    "pictures": (("picture",),),
    "balanced": (("prompt", "answer"), ("picture",)),
}


def weighting_from(name: str) -> Weighting:
    """The weighting of that name.

    Raises:
        UsageError: there is none.
    """
    for weighting in GROUPS:
        if weighting == name:
            return weighting
    raise UsageError(f"weighting is {name!r}: choose from {', '.join(GROUPS)}.", settings=["weighting"])


@dataclass(slots=True)
class RowSum:
    """Squares of ``n_rows`` rows, added up: float64 [n]."""

    squares: Doubles
    n_rows: int


@dataclass(frozen=True, slots=True)
class Weighted:
    """An entry of an imatrix file: ``sums`` float32 [n], which divided by ``count`` is a mean square."""

    sums: Floats
    count: int


@dataclass(slots=True)
class SquareSums:
    """The sums of all kinds, by kind and name of the weights."""

    by_kind: dict[Kind, dict[str, RowSum]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def add(self, kind: Kind, name: str, rows: Floats, *, in_float32: bool = False) -> None:
        """Add the squares of ``rows``, float32 [n_rows, n], in float64.

        ``in_float32``: one row after another in float32, as llama-imatrix does, which loses digits.

        Raises:
            ImatrixError: earlier rows were of another length.
        """
        known = self.by_kind[kind].setdefault(name, RowSum(np.zeros(rows.shape[1]), 0))
        if known.squares.shape != rows.shape[1:]:
            raise ImatrixError(
                f"{name} has other rows than before: begin anew with restart=True.", settings=["restart"]
            )
        squares = np.square(rows)
        if in_float32:
            summed = np.vstack([known.squares.astype(np.float32), squares])
            known.squares = summed.sum(axis=0, dtype=np.float32).astype(np.float64)
        else:
            known.squares += squares.sum(axis=0, dtype=np.float64)
        known.n_rows += len(rows)

    def n_rows(self, kind: Kind) -> int:
        """Rows of a kind that most weights have seen."""
        return max((known.n_rows for known in self.by_kind[kind].values()), default=0)

    def weighted(self, weighting: Weighting) -> dict[str, Weighted]:
        """The entries of a file, by name.

        Of several groups, the mean squares are averaged. A group without rows is left out: with text alone,
        "balanced" is "text".

        Raises:
            UsageError: there are no rows that this weighting counts.
        """
        groups = [group for group in GROUPS[weighting] if any(self.n_rows(kind) for kind in group)]
        if not groups:
            raise UsageError(
                f"weighting={weighting}, but the data has no such tokens: choose another.",
                settings=["weighting"],
            )
        names = {name for sums in self.by_kind.values() for name in sums}
        return {name: self._entry(name, groups) for name in names}

    def _entry(self, name: str, groups: list[tuple[Kind, ...]]) -> Weighted:
        found = [found for group in groups if (found := self._group(name, group)).n_rows]
        count = sum(one.n_rows for one in found)
        mean = np.mean([one.squares / one.n_rows for one in found], axis=0)
        return Weighted((mean * count).astype(np.float32), count)

    def _group(self, name: str, group: tuple[Kind, ...]) -> RowSum:
        parts = [self.by_kind[kind][name] for kind in group if name in self.by_kind[kind]]
        return RowSum(np.sum([part.squares for part in parts], axis=0), sum(part.n_rows for part in parts))
