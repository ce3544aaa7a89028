"""The four benchmarks that the card quotes, by the names that the command line knows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_gguf.score.item import Item, Score

Prompt = Callable[[Item], str]
Answers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark: how its files are read, how a model is asked, how answers are scored.

    Attributes:
        name: "mmbench".
        title: "MMBench".
        read: the items of a file or folder, whichever of the official forms it has; raises BenchmarkError.
        prompts: by whose words to ask with: "vlmevalkit", "lmms-eval", "official"; first the usual.
        score: scores of answers by their items' index, by every rule that there is. Each item needs an
            answer; items whose answer is not published are left out. Raises BenchmarkError.
        card: what the card claims of the described model: points of MME, else percent.
        limits: with which published figures the scores may be compared, and with which not.
    """

    name: str
    title: str
    read: Callable[[Path], list[Item]]
    prompts: Mapping[str, Prompt]
    score: Callable[[Sequence[Item], Answers], tuple[Score, ...]]
    card: float
    limits: str


BENCHMARKS: Final[Mapping[str, Benchmark]] = {}
