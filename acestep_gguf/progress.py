"""What an engine is doing while nobody sees anything of the answer yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ``AceStep`` is.

    ``stage`` is "loading", "encoding" (pictures of the question) or "reading" (the prompt with its pictures);
    ``done`` of ``total`` are those pictures, or positions of the prompt beyond what is known from before.
    """

    stage: Literal["loading", "encoding", "reading"]
    done: int = 0
    total: int = 1


Report = Callable[[Progress], None]


def report_nothing(progress: Progress) -> None:
    """For whoever does not want to know."""
