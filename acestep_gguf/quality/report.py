"""What was measured, as data and as a table."""

from dataclasses import dataclass
from typing import Final

HEADS: Final = (
    "decoder", "tower", "MB", "KL", "top-1", "same", "alike", "cosine", "least", "s/image", "s/answer"
)  # fmt: skip
LINE: Final = "{:<14} {:<10} {:>9} {:>8} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureQuestion:
    """A question about a picture, and the file that the picture came from."""

    picture: str
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswer:
    """An answer; ``n_alike`` of its ``n_tokens`` come before the first that differs from the best one's."""

    text: str
    n_tokens: int
    n_alike: int
    is_same: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A decoder with a tower, and its answers next to the best one's, in the order of the questions.

    ``kl_divergence`` (nats a token, of the best one's prediction to this one's) and ``top_1`` (share of
    tokens where both would choose the same) are over the best one's answers. ``cosine`` and ``min_cosine``
    of image embeds are to the best one's, mean and least over all image tokens. ``bytes`` are those of both
    files, and seconds are for one picture and for one answer without it.
    """

    decoder: str
    tower: str
    bytes: int
    kl_divergence: float
    top_1: float
    cosine: float
    min_cosine: float
    image_s: float
    answer_s: float
    answers: tuple[ComparedAnswer, ...]

    @property
    def n_same(self) -> int:
        """Answers that are the best one's, token by token."""
        return sum(answer.is_same for answer in self.answers)

    @property
    def n_alike(self) -> float:
        """Tokens before the first difference, the mean over the answers."""
        return sum(answer.n_alike for answer in self.answers) / len(self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """All candidates; the first is the best one, which the others are compared with."""

    bundle: str
    asked: tuple[PictureQuestion, ...]
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate that the others are compared with."""
        return self.candidates[0]


def table(report: QualityReport) -> str:
    """The report in lines; the answers themselves are in JSON and HTML only."""
    return "\n".join(LINE.format(*row) for row in (HEADS, *map(cells, report.candidates)))


def cells(found: Candidate) -> tuple[str, ...]:
    """A candidate's row, under ``HEADS``."""
    return (
        found.decoder,
        found.tower,
        f"{found.bytes / 1e6:.1f}",
        f"{found.kl_divergence:.1e}",
        f"{found.top_1:.1%}",
        f"{found.n_same}/{len(found.answers)}",
        f"{found.n_alike:.1f}",
        f"{found.cosine:.4f}",
        f"{found.min_cosine:.4f}",
        f"{found.image_s:.2f}",
        f"{found.answer_s:.2f}",
    )
