"""MathVista's testmini: options, numbers and lists; published figures let a GPT find them in the answers."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import Item, Score
from acestep_gguf.score.json_file import json_objects
from acestep_gguf.score.mathvista_rules import by_lmms_eval, by_own_rules, by_vlmevalkit
from acestep_gguf.score.pictures import picture_file
from acestep_gguf.score.row import MAX_ROWS, Row, texts_of
from acestep_gguf.score.shares import answered, distinct, percent
from acestep_gguf.score.tables import table_rows

# Whether an answer is right; None where the harness would ask its judge, which counts as wrong.
RULES: Final[Mapping[str, Callable[[Item, str], bool | None]]] = {
    "own rules": by_own_rules,
    "vlmevalkit without its judge": by_vlmevalkit,
    "lmms-eval without its judge": by_lmms_eval,
}
SPLIT: Final = "testmini"
KEPT: Final = (
    *("question_type", "answer_type", "precision", "unit", "query", "answer_option"),
    *("task", "skills", "source", "context", "grade", "language"),
)
MAX_CHOICES: Final = 26
# The parts of a query: VLMEvalKit's TSV has it for the question.
HINT, QUESTION, CHOICES = "Hint: ", "\nQuestion: ", "\nChoices:\n"
DECIMAL_PLACES: Final = {1: " with one decimal place", 2: " with two decimal places"}


def read(path: Path) -> list[Item]:
    """The questions of testmini.json, of Hugging Face's Parquet files or of VLMEvalKit's TSV.

    Raises:
        BenchmarkError: it is none of them.
        MissingPackageError: pyarrow is not installed.
    """
    rows = _json_rows(path) if path.suffix.lower() == ".json" else table_rows(path, SPLIT)
    return distinct([*map(_item, rows)], path)


def query_prompt(item: Item) -> str:
    """The data set's own: what kind of answer is wanted, the question, and its choices."""
    return item.extra.get("query", item.question)


def lmms_eval_prompt(item: Item) -> str:
    """Of mathvista_testmini_format, which asks for nothing but the answer."""
    unit = f" (Unit: {item.extra['unit']})" if "unit" in item.extra else ""
    options = "".join(f"\n{letter}. {text}" for letter, text in item.choices.items())
    return f"{item.question}{unit}{options}\n{_wanted(item)}".strip()


def _wanted(item: Item) -> str:
    if item.choices:
        return "Answer with the option's letter from the given choices directly."
    if item.extra["answer_type"] == "list":
        return "Answer the question using a Python list."
    if item.extra["answer_type"] == "integer":
        return "Answer the question using a single integer number."
    places = DECIMAL_PLACES.get(int(item.extra.get("precision", "0")), "")
    return f"Answer the question using a single floating-point number{places}."


def right_by_rule(item: Item, answer: str) -> dict[str, bool]:
    """Whether an answer is right by each rule, for itself."""
    return {rule: found(item, answer) is True for rule, found in RULES.items()}


def score(items: Sequence[Item], answers: Mapping[str, str]) -> tuple[Score, ...]:
    """By every rule: overall, by task, by skill; of the harnesses' also the share that needs no judge."""
    pairs = answered(items, answers)
    return tuple(found for rule in RULES for found in _scores(pairs, rule))


def _scores(pairs: Sequence[tuple[Item, str]], rule: str) -> Iterator[Score]:
    marks = [(item, RULES[rule](item, answer)) for item, answer in pairs]
    yield percent("Overall", rule, [mark is True for _, mark in marks])
    if any(mark is None for _, mark in marks):
        yield percent("found without a judge", rule, [mark is not None for _, mark in marks])
    by_name: defaultdict[str, list[bool]] = defaultdict(list)
    for item, mark in marks:
        for name in (item.category, *skills_of(item)):
            by_name[name].append(mark is True)
    for name in sorted(by_name):
        yield percent(name, rule, by_name[name])


def skills_of(item: Item) -> list[str]:
    """The skills that a question needs."""
    skills = item.extra.get("skills", "[]")
    return _list(skills) or [skills]


def _json_rows(path: Path) -> Iterator[Row]:
    problems = json_objects(path)
    if len(problems) > MAX_ROWS:
        raise BenchmarkError(f"{path} has more than {MAX_ROWS} problems.")
    for pid, problem in problems.items():
        where = f"{path} problem {pid[:64]}"
        if not isinstance(problem, dict):
            raise BenchmarkError(f"{where} is no object: is it MathVista's testmini.json?")
        picture = picture_file((path.parent,), str(problem.get("image")), where)
        yield Row(where, {"pid": pid, **texts_of(problem, where)}, picture)


def _item(row: Row) -> Item:
    index = row.texts.get("index") or row["pid"]
    choices = _list(row.texts.get("choices", "[]"))
    if choices is None or len(choices) > MAX_CHOICES:
        raise BenchmarkError(f"{row.where} has choices that are no list of {MAX_CHOICES} texts or fewer.")
    question, query = row["question"], row.texts.get("query")
    if question.startswith(HINT) and QUESTION in question:
        query = question
        question = question.partition(QUESTION)[2].partition(CHOICES)[0]
    extra = {name: row.texts[name] for name in KEPT if name in row.texts}
    if row["question_type"] not in {"multi_choice", "free_form"} or (
        not choices and row["answer_type"] not in {"text", "integer", "float", "list"}
    ):
        raise BenchmarkError(f"{row.where} is of no type that MathVista has: give its official file.")
    if "precision" in extra:
        extra["precision"] = str(_precision(extra["precision"], row.where))
    return Item(
        index=index,
        group=index,
        picture=row.picture,
        question=question,
        choices={chr(ord("A") + place): text for place, text in enumerate(choices)},
        answer=row.texts.get("answer"),
        category=row.texts.get("task", ""),
        extra=extra | ({} if query is None else {"query": query}),
    )


def _list(text: str) -> list[str] | None:
    """The texts of a list as Python writes it; None if it is no such list."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return [*map(str, found)] if isinstance(found, list) else None


def _precision(text: str, where: str) -> int:
    """Decimal places; Parquet and pandas have 1.0 for one."""
    try:
        precision = float(text)
    except ValueError:
        precision = -1
    if precision not in range(20):
        raise BenchmarkError(f"{where} has the precision {text[:64]!r}: fetch the file again.")
    return int(precision)
