"""What the benchmarks' modules share: items that are told apart, and shares of right answers as scores."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import Item, Score


def distinct(items: list[Item], path: Path) -> list[Item]:
    """The items as they are.

    Raises:
        BenchmarkError: there are none, or two have one index.
    """
    if not items:
        raise BenchmarkError(f"{path} has no questions: give the benchmark's official file.")
    seen: set[str] = set()
    for item in items:
        if item.index in seen:
            raise BenchmarkError(f"{path} has the question {item.index[:64]!r} twice: fetch it again.")
        seen.add(item.index)
    return items


def answered(items: Sequence[Item], answers: Mapping[str, str]) -> list[tuple[Item, str]]:
    """The items whose answer is published, each with the model's.

    Raises:
        BenchmarkError: there are none, or the model's answer is missing.
    """
    missing = [item.index for item in items if item.answer is not None and item.index not in answers]
    if missing:
        raise BenchmarkError(f"{len(missing)} questions have no answer yet, as {missing[0][:64]!r}.")
    found = [(item, answers[item.index]) for item in items if item.answer is not None]
    if not found:
        raise BenchmarkError("the right answers are not published: score the split that has them.")
    return found


def percent(name: str, rule: str, right: Iterable[bool]) -> Score:
    """The share of right answers."""
    marks = [*right]
    return Score(name=name, rule=rule, value=100 * sum(marks) / len(marks), most=100.0, n=len(marks))
