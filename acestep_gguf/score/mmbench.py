"""MMBench: each question again with its options rotated, and right only if every time."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import LMMS_EVAL, VLMEVALKIT, Item, Score
from acestep_gguf.score.letters import by_lmms_eval, by_vlmevalkit
from acestep_gguf.score.row import Row
from acestep_gguf.score.shares import answered, distinct, percent
from acestep_gguf.score.tables import table_rows

RULES: Final[Mapping[str, Callable[[str, Mapping[str, str]], str | None]]] = {
    VLMEVALKIT: by_vlmevalkit,
    LMMS_EVAL: by_lmms_eval,
}
ROTATION: Final = 10**6  # indices of rotated questions are this far apart
ABILITY: Final = "l2-category"
SPLIT: Final = "split"
NO_SPLIT: Final = "none"
INSTRUCTION: Final = "Please select the correct answer from the options above. \n"


def read(path: Path) -> list[Item]:
    """The questions of a TSV file, or of lmms-eval's Parquet files.

    Raises:
        BenchmarkError: it is neither, or no MMBench.
        MissingPackageError: pyarrow is not installed.
    """
    return distinct([*map(_item, table_rows(path))], path)


def options_of(row: Row) -> dict[str, str]:
    """The texts of a row's options by their letters."""
    return {letter: row.texts[letter] for letter in ascii_uppercase if letter in row.texts}


def vlmevalkit_prompt(item: Item) -> str:
    """Of ``ImageMCQDataset.build_prompt``; the space at its end is theirs."""
    hint = "" if item.hint is None else f"Hint: {item.hint}\n"
    options = "".join(f"{letter}. {text}\n" for letter, text in item.choices.items())
    asked = f"Options:\n{options}{INSTRUCTION}" if options else ""
    return f"{hint}Question: {item.question}\n{asked}"


def lmms_eval_prompt(item: Item) -> str:
    """Of ``mmbench_doc_to_text``, with the empty line that it has."""
    hint = "" if item.hint is None else f"{item.hint} "
    options = "".join(f"\n{letter}. {text}" for letter, text in item.choices.items())
    return (
        f"{hint}{item.question} There are several options:{options}\n"
        "\nAnswer with the option's letter from the given choices directly."
    )


def right_by_rule(item: Item, answer: str) -> dict[str, bool]:
    """Whether an answer is right by each rule, for itself."""
    return {rule: found(answer, item.choices) == item.answer for rule, found in RULES.items()}


def score(items: Sequence[Item], answers: Mapping[str, str]) -> tuple[Score, ...]:
    """By every rule and split: overall, by ability, by category."""
    pairs = answered(items, answers)
    return tuple(found for rule in RULES for found in _scores(pairs, rule))


def _scores(pairs: Sequence[tuple[Item, str]], rule: str) -> Iterator[Score]:
    first: dict[str, Item] = {}
    right: dict[str, bool] = {}
    for item, answer in pairs:
        if item.index == item.group:
            first[item.group] = item
        found = RULES[rule](answer, item.choices) == item.answer
        right[item.group] = right.get(item.group, True) and found
    marks: defaultdict[str, list[bool]] = defaultdict(list)
    for group, item in first.items():
        split = item.extra.get(SPLIT, NO_SPLIT)
        for name in ("Overall", item.extra.get(ABILITY), item.category):
            if name:
                marks[f"{name}, {split}"].append(right[group])
    if not marks:
        raise BenchmarkError("no question has its first rotation among the answers: score the whole file.")
    for name in sorted(marks, key=lambda name: (not name.startswith("Overall, "), name)):
        yield percent(name, rule, marks[name])


def _item(row: Row) -> Item:
    try:
        index = int(row["index"])
    except ValueError as error:
        raise BenchmarkError(f"{row.where} has an index that is no number: is it MMBench's?") from error
    return Item(
        index=str(index),
        group=str(index % ROTATION),
        picture=row.picture,
        question=row["question"],
        hint=row.texts.get("hint"),
        choices=options_of(row),
        answer=row.texts.get("answer"),
        category=row.texts.get("category", ""),
        extra={name: row.texts[name] for name in (ABILITY, SPLIT) if name in row.texts},
    )
