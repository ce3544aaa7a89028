"""KL divergence against size as a drawing (SVG), one dot a quantization, that needs nothing else.

Colours are the page's own (``currentColor``), so that it is readable in the dark, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from acestep_gguf.quality.report import Candidate, QualityReport, TextCandidate, TextReport
from acestep_gguf.quality.statistics import Estimate
from acestep_gguf.quality.table import scientific

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 700, 20, 360  # of the field, in pixels
LINE_HEIGHT: Final = 16  # of labels
STEPS: Final = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Dot:
    """A quantization: its size in MB and its mean KL divergence, above 0."""

    name: str
    megabytes: float
    divergence: Estimate


def dots_of(report: QualityReport | TextReport) -> list[Dot]:
    """What is compared with the first candidate, as far as a logarithm has a place for it."""
    if isinstance(report, TextReport):
        dots = [_dot(found.decoder, found) for found in report.candidates[1:]]
    else:
        dots = [_dot(f"{found.decoder}, {found.tower}", found) for found in report.candidates[1:]]
    return [dot for dot in dots if dot.divergence.value > 0]


def divergence_plot(dots: Sequence[Dot]) -> str:
    """An ``svg`` element, with a title and a description for screen readers; empty without dots.

    Vertical lines are intervals. Names come from strangers, and are escaped.
    """
    if not dots:
        return ""
    x, y = _Axis([dot.megabytes for dot in dots], LEFT + 20, RIGHT - 20), _log_axis(dots)
    largest, smallest = (f(dots, key=lambda dot: dot.megabytes) for f in (max, min))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="plot-title plot-desc">',
        '<title id="plot-title">KL divergence against size</title>',
        f'<desc id="plot-desc">{len(dots)} quantizations, from {_label(smallest)} to {_label(largest)}. '
        "All figures are in the table.</desc>",
    ]
    for megabytes in x.ticks():
        at = x.at(megabytes)
        parts += [_line(at, TOP, at, BOTTOM, "grid"), _text(at, BOTTOM + 20, f"{megabytes:g}", "middle")]
    for decade in y.ticks():
        at = y.at(decade)
        parts += [
            _line(LEFT, at, RIGHT, at, "grid"),
            _text(LEFT - 8, at + 4, f"1e{decade:g}", "end"),
        ]
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 12, "MB", "middle"))
    parts.append(
        f'<text transform="translate(16 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "KL divergence, nats a token</text>"
    )
    last_label = -math.inf
    for dot in sorted(dots, key=lambda dot: -dot.divergence.value):
        at_x, at_y = x.at(dot.megabytes), y.at(math.log10(dot.divergence.value))
        if dot.divergence.low is not None and dot.divergence.low > 0 and dot.divergence.high is not None:
            ends = (y.at(math.log10(end)) for end in (dot.divergence.low, dot.divergence.high))
            parts.append(_line(at_x, next(ends), at_x, next(ends), "interval"))
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"><title>{_label(dot)}</title></circle>')
        last_label = max(at_y + 4, last_label + LINE_HEIGHT)  # never on top of the one before
        is_left = at_x > (LEFT + RIGHT) / 2
        parts.append(
            _text(at_x + (-10 if is_left else 10), last_label, dot.name, "end" if is_left else "start")
        )
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where values lie between two pixels, and where its ticks are."""

    values: Sequence[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high = min(self.values), max(self.values)
        if low == high:
            return (self.start + self.end) / 2
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within."""
        low, high = min(self.values), max(self.values)
        least = max((high - low) / 6, abs(high) * 1e-6, 1e-9)
        power = 10.0 ** math.floor(math.log10(least))
        step = next((step * power for step in STEPS if step * power >= least), 10 * power)
        return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_axis(dots: Sequence[Dot]) -> _Axis:
    """Powers of ten, upwards, that hold all dots and their intervals."""
    ends = [end for dot in dots for end in (dot.divergence.value, dot.divergence.low, dot.divergence.high)]
    logs = [math.log10(end) for end in ends if end is not None and end > 0]
    return _Axis([math.floor(min(logs)), math.floor(max(logs)) + 1], BOTTOM, TOP)


def _dot(name: str, found: Candidate | TextCandidate) -> Dot:
    return Dot(name, found.bytes / 1e6, found.kl_divergence.mean)


def _label(dot: Dot) -> str:
    return escape(f"{dot.name}: {dot.megabytes:.1f} MB, {scientific(dot.divergence.value)} nats")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
