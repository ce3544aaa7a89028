"""What a benchmark asks, and what comes of it: an item a row of its file, a score a figure of its report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

VLMEVALKIT: Final = "vlmevalkit"
LMMS_EVAL: Final = "lmms-eval"
OFFICIAL: Final = "official"


class PictureRef(Protocol):
    """A picture that is still where the benchmark has it."""

    @property
    def key(self) -> str:
        """The same for two items of one picture, within one reading of a benchmark."""

    def read(self) -> bytes:
        """The picture's file, not decoded.

        Raises:
            ImageError: it is missing, too large or damaged.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark.

    Attributes:
        index: unique in the file.
        group: equal for the questions that are only right together, MME's pairs and MMBench's rotations.
        picture: read when it is needed.
        question: as in the file, with what the benchmark itself adds to it.
        hint: what MMBench tells before its question.
        choices: texts by their letters, from A on; empty for an open question. A letter is left out where the
            file says that there is nothing, as in the middle of a row of VLMEvalKit's.
        answer: as in the file: "Yes", "B" or "14"; None where it is not published.
        category: as in the file.
        extra: further columns that prompts and rules need.
    """

    index: str
    group: str
    picture: PictureRef
    question: str
    hint: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    answer: str | None
    category: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure of a report.

    Attributes:
        name: "perception", "OCR acc+", "Overall, dev".
        rule: whose rule found the answers: a harness, or "likelihood, sum".
        value: in the benchmark's own unit: points in MME, else percent.
        most: what the best possible answers would get.
        n: questions that it is over; a group of questions that are only right together is one.
    """

    name: str
    rule: str
    value: float
    most: float
    n: int
