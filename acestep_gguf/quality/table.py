"""Reports as tables: for the terminal, and for the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from acestep_gguf.quality.report import Candidate, QualityReport, TextCandidate, TextReport
from acestep_gguf.quality.statistics import Estimate

PREDICTIONS: Final = ("KL", "KL 90%", "KL 99%", "top-1", "perplexity")
ANSWER_HEADS: Final = ("decoder", "tower", "MB", *PREDICTIONS, "same", "s/answer")
EMBEDS_HEADS: Final = ("tower", "cosine", "least", "centred", "least", "s/image")
TEXT_HEADS: Final = ("decoder", "MB", *PREDICTIONS, "s")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure or a name, and the ends of its interval, if it has one."""

    figure: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under their heads; the first ``n_names`` columns are names."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    n_names: int = 1

    def lines(self) -> str:
        """For the terminal: intervals stand in a line of their own below their figures."""
        lines: list[Sequence[str]] = [self.heads]
        for row in self.rows:
            lines.append([cell.figure for cell in row])
            if any(cell.interval for cell in row):
                lines.append([cell.interval for cell in row])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            " ".join(
                text.ljust(width) if column < self.n_names else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def tables(report: QualityReport | TextReport) -> list[Table]:
    """The report's tables; the answers themselves are in JSON and on the page only."""
    if isinstance(report, TextReport):
        return [Table(TEXT_HEADS, [_text_row(found) for found in report.candidates])]
    by_tower = {found.tower: found for found in reversed(report.candidates)}
    towers = [by_tower[name] for name in dict.fromkeys(found.tower for found in report.candidates)]
    return [
        Table(ANSWER_HEADS, [_answers_row(found) for found in report.candidates], n_names=2),
        Table(EMBEDS_HEADS, [_embeds_row(found) for found in towers]),
    ]


def _answers_row(found: Candidate) -> list[Cell]:
    return [
        Cell(found.decoder),
        Cell(found.tower),
        Cell(f"{found.bytes / 1e6:.1f}"),
        *_predictions(found),
        Cell(f"{found.n_same}/{len(found.answers)}"),
        Cell(f"{found.answer_s:.2f}"),
    ]


def _text_row(found: TextCandidate) -> list[Cell]:
    return [
        Cell(found.decoder),
        Cell(f"{found.bytes / 1e6:.1f}"),
        *_predictions(found),
        Cell(f"{found.seconds:.1f}"),
    ]


def _predictions(found: Candidate | TextCandidate) -> list[Cell]:
    divergence = found.kl_divergence
    return [
        *(_cell(estimate, scientific) for estimate in (divergence.mean, divergence.p90, divergence.p99)),
        _cell(found.top_1, lambda share: f"{share * 100:.1f}", unit="%"),
        _cell(found.perplexity, lambda value: f"{value:.4g}" if value >= 10 else f"{value:.3f}"),
    ]


def _embeds_row(found: Candidate) -> list[Cell]:
    embeds = found.embeds
    similar = (embeds.cosine, embeds.min_cosine, embeds.centred_cosine, embeds.min_centred_cosine)
    return [Cell(found.tower), *(Cell(f"{cosine:.4f}") for cosine in similar), Cell(f"{found.image_s:.2f}")]


def _cell(estimate: Estimate, text: Callable[[float], str], unit: str = "") -> Cell:
    if estimate.low is None or estimate.high is None:
        return Cell(text(estimate.value) + unit)
    return Cell(text(estimate.value) + unit, f"{text(estimate.low)}-{text(estimate.high)}{unit}")


def scientific(value: float) -> str:
    """Two digits and an exponent, as 1.2e-3; 0 is 0."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"
