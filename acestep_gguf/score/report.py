"""What a benchmark said of each decoder, as data and as a table beside the card's figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from acestep_gguf.score.item import Score

# How the names of scores of a whole benchmark begin.
WHOLE: Final = ("total", "Overall")
CARD: Final = "card*"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassScores:
    """Scores of one way to ask: by whose ``prompts``, and whether for "answers" or for "likelihood".

    ``errors`` is the number of questions that failed, which count as wrong.
    """

    prompts: str
    way: str
    errors: int
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderScores:
    """Scores of one decoder, in each way in which it was asked."""

    decoder: str
    passes: tuple[PassScores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """Scores of decoders that were asked the same.

    ``card`` is what the card of the described model claims, in the benchmark's unit; nobody here measured it.
    ``limits`` says with which published figures the scores may be compared.
    """

    bundle: str
    benchmark: str
    title: str
    questions: int
    pictures: int
    card: float
    limits: str
    decoders: tuple[DecoderScores, ...]

    @property
    def errors(self) -> int:
        """Questions that failed, those of all decoders together."""
        return sum(one.errors for decoder in self.decoders for one in decoder.passes)


def is_whole(score: Score) -> bool:
    """Whether it is of the whole benchmark, or of a split of it: then the card's figure stands beside it."""
    return score.name.startswith(WHOLE)


def table(report: ScoreReport) -> str:
    """The report in lines: a row for each score, a column for each decoder."""
    names = [decoder.decoder for decoder in report.decoders]
    rows = [("score", "rule", "prompts", "n", "most", *names, CARD)]
    for of_decoders in zip(*(decoder.passes for decoder in report.decoders), strict=True):
        prompts = of_decoders[0].prompts
        for scores in zip(*(one.scores for one in of_decoders), strict=True):
            rows.append((*_head(scores[0], prompts), *map(_value, scores), _card(scores[0], report)))
    if len(rows) == 1:
        rows = []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = f"{report.bundle}: {report.title}, {report.questions} questions about {report.pictures} pictures"
    lines = [head, *("  ".join(_aligned(row, widths)).rstrip() for row in rows)]
    if not rows:
        return f"{head}\nThe right answers are not published: those of the bundle are kept, to be sent in."
    claim = f"* {report.card:g} is what the card of the described model claims. Nobody here measured it."
    return "\n".join([*lines, claim, report.limits])


def _head(score: Score, prompts: str) -> tuple[str, ...]:
    return score.name, score.rule, prompts, str(score.n), f"{score.most:g}"


def _value(score: Score) -> str:
    return f"{score.value:.1f}"


def _card(score: Score, report: ScoreReport) -> str:
    return f"{report.card:.1f}" if is_whole(score) else ""


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Texts to the left, numbers to the right."""
    return [
        cell.ljust(width) if place < 3 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
