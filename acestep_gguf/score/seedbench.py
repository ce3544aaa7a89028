"""SEED-Bench's questions about single pictures: four options, found by letter or by likelihood."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import LMMS_EVAL, VLMEVALKIT, Item, Score
from acestep_gguf.score.json_file import json_objects
from acestep_gguf.score.letters import by_vlmevalkit, first_character
from acestep_gguf.score.mmbench import options_of
from acestep_gguf.score.pictures import PictureFile, picture_file
from acestep_gguf.score.row import MAX_ROWS, Row, texts_of
from acestep_gguf.score.shares import answered, distinct, percent
from acestep_gguf.score.tables import table_rows

RULES: Final[Mapping[str, Callable[[str, Mapping[str, str]], str | None]]] = {
    VLMEVALKIT: by_vlmevalkit,
    LMMS_EVAL: lambda answer, _: first_character(answer),
}
BY_SUM: Final = "likelihood, sum"  # the official tool's: of log-probabilities of a choice's tokens
BY_MEAN: Final = "likelihood, mean"  # that of lmms-eval's seedbench_ppl
CATEGORIES: Final = (
    *("Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location"),
    *("Instances Counting", "Spatial Relation", "Instance Interaction", "Visual Reasoning"),
    "Text Understanding",
)  # by question_type_id, from 1 on; those above are about videos
CHOICES: Final = {"A": "choice_a", "B": "choice_b", "C": "choice_c", "D": "choice_d"}
IMAGE: Final = "image"  # a data_type
# Where the pictures of SEED-Bench.json lie, beside it; their names may have a suffix that data_id has not.
PICTURE_FOLDERS: Final = ("SEED-Bench-image", "seed_bench_image", "")
PICTURE_SUFFIXES: Final = ("", ".jpg", ".png")


def read(path: Path) -> list[Item]:
    """The questions of SEED-Bench.json, of VLMEvalKit's TSV or of lmms-eval's Parquet files, but for videos'.

    Raises:
        BenchmarkError: it is none of them.
        MissingPackageError: pyarrow is not installed.
    """
    rows = _json_rows(path) if path.suffix.lower() == ".json" else table_rows(path)
    return distinct([_item(row) for row in rows if row.texts.get("data_type", IMAGE) == IMAGE], path)


def lmms_eval_prompt(item: Item) -> str:
    """Of ``seed_doc_to_text``."""
    options = "".join(f"\n{letter}. {text}" for letter, text in item.choices.items())
    return f"{item.question}{options}\nAnswer with the option's letter from the given choices directly."


def official_likelihood_prompt(item: Item) -> str:
    """After which the official tool puts a choice's text."""
    return f"Question: {item.question}\nAnswer:"


def lmms_eval_likelihood_prompt(item: Item) -> str:
    """Of ``seed_doc_to_text_mc``."""
    return f"{item.question} Answer :"


def right_by_rule(item: Item, answer: str) -> dict[str, bool]:
    """Whether an answer is right by each rule, for itself."""
    return {rule: found(answer, item.choices) == item.answer for rule, found in RULES.items()}


def score(items: Sequence[Item], answers: Mapping[str, str]) -> tuple[Score, ...]:
    """By every rule for letters: overall and by category."""
    pairs = answered(items, answers)
    found: list[Score] = []
    for rule, letter_of in RULES.items():
        marks = [(item.category, letter_of(answer, item.choices) == item.answer) for item, answer in pairs]
        found += _scores(marks, rule)
    return tuple(found)


def likelihood_scores(
    items: Sequence[Item], sums: Mapping[str, Sequence[float]], means: Mapping[str, Sequence[float]]
) -> tuple[Score, ...]:
    """Overall and by category, by the sum as the official tool does, and by the mean as lmms-eval does.

    Args:
        items: those with a published answer count.
        sums: by index, for each of an item's choices in their order, its tokens' log-probabilities summed.
        means: the same, divided by the number of tokens.

    An item without likelihoods, since its picture is damaged for instance, counts as wrong.
    """
    found: list[Score] = []
    for rule, given in ((BY_SUM, sums), (BY_MEAN, means)):
        marks = []
        for item in items:
            if item.answer is not None:
                letter = most_likely(item, given[item.index]) if item.index in given else None
                marks.append((item.category, letter == item.answer))
        found += _scores(marks, rule)
    return tuple(found)


def most_likely(item: Item, likelihoods: Sequence[float]) -> str:
    """The letter of the choice, of several equal ones the first, whose likelihood is the largest."""
    return max(zip(item.choices, likelihoods, strict=True), key=itemgetter(1))[0]


def _scores(marks: Sequence[tuple[str, bool]], rule: str) -> Iterator[Score]:
    by_category: defaultdict[str, list[bool]] = defaultdict(list)
    for category, is_right in marks:
        by_category[category].append(is_right)
    yield percent("Overall", rule, [is_right for _, is_right in marks])
    for category in sorted(by_category):
        yield percent(category, rule, by_category[category])


def _json_rows(path: Path) -> Iterator[Row]:
    questions = json_objects(path).get("questions")
    if not isinstance(questions, list) or len(questions) > MAX_ROWS:
        raise BenchmarkError(f"{path} has no list of {MAX_ROWS} questions or fewer: is it SEED-Bench.json?")
    for number, question in enumerate(questions, 1):
        where = f"{path} question {number}"
        if not isinstance(question, dict):
            raise BenchmarkError(f"{where} is no object: fetch the file again.")
        yield Row(where, texts_of(question, where), _picture(path, question, where))


def _picture(path: Path, question: dict[str, Any], where: str) -> PictureFile | None:
    if question.get("data_type") != IMAGE:
        return None
    folders = tuple(path.parent / name for name in PICTURE_FOLDERS)
    found = [
        picture_file(folders, f"{question.get('data_id')}{suffix}", where) for suffix in PICTURE_SUFFIXES
    ]
    return next((one for one in found if one.path.is_file()), found[0])


def _item(row: Row) -> Item:
    index = row.texts.get("index") or row["question_id"]
    choices = {letter: row.texts[name] for letter, name in CHOICES.items() if name in row.texts}
    return Item(
        index=index,
        group=index,
        picture=row.picture,
        question=row["question"],
        choices=choices or options_of(row),
        answer=row.texts.get("answer"),
        category=row.texts.get("category") or _category(row),
    )


def _category(row: Row) -> str:
    number = row["question_type_id"]
    if not (number.isdecimal() and len(number) < 3 and 1 <= int(number) <= len(CATEGORIES)):
        raise BenchmarkError(f"{row.where} has a question_type_id that pictures have not: {number[:64]!r}.")
    return CATEGORIES[int(number) - 1]
