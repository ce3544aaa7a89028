"""MME: two questions a picture, with yes for one and no for the other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.item import LMMS_EVAL, OFFICIAL, VLMEVALKIT, Item, Score
from acestep_gguf.score.pictures import PictureFile
from acestep_gguf.score.row import opened
from acestep_gguf.score.shares import answered, distinct
from acestep_gguf.score.tables import table_rows
from acestep_gguf.score.yes_no import by_lmms_eval, by_official_tool, by_vlmevalkit

PERCEPTION: Final = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES: Final = (*PERCEPTION, *COGNITION)
RULES: Final[Mapping[str, Callable[[str], str | None]]] = {
    VLMEVALKIT: by_vlmevalkit,
    LMMS_EVAL: by_lmms_eval,
    OFFICIAL: by_official_tool,
}
# Where a category's folder has its pictures, and where their questions.
LAYOUTS: Final = (("images", "questions_answers_YN"), ("", ""))
PICTURES: Final = (".jpg", ".png", ".jpeg")
MAX_QUESTIONS_BYTES: Final = 2**16
MOST: Final = 200.0  # points of a category
INSTRUCTION: Final = " Please answer yes or no."


def read(path: Path) -> list[Item]:
    """The questions of the official folder, of VLMEvalKit's TSV or of Hugging Face's Parquet files.

    Raises:
        BenchmarkError: it is neither, or a picture has not two questions.
        MissingPackageError: pyarrow is not installed.
    """
    folders = [name for name in CATEGORIES if (path / name).is_dir()]
    items = [*(_of_folders(path, folders) if folders else _of_table(path))]
    for group, n in Counter(item.group for item in items).items():
        if n != 2:
            raise BenchmarkError(f"{path} has {n} questions about {group[:100]!r}, not two: fetch it again.")
    return distinct(items, path)


def vlmevalkit_prompt(item: Item) -> str:
    """As the file has it: MME's own words ask for yes or no."""
    return item.question


def lmms_eval_prompt(item: Item) -> str:
    """For a word or phrase, in place of MME's own words."""
    question = item.question.strip().replace(INSTRUCTION, "")
    return f"{question}\nAnswer the question using a single word or phrase."


def right_by_rule(item: Item, answer: str) -> dict[str, bool]:
    """Whether an answer is right by each rule, for itself."""
    return {rule: found(answer) == item.answer for rule, found in RULES.items()}


def score(items: Sequence[Item], answers: Mapping[str, str]) -> tuple[Score, ...]:
    """Points by every rule: of perception, of cognition, of each category, and its two shares."""
    pairs = answered(items, answers)
    return tuple(found for rule in RULES for found in _scores(pairs, rule))


def _scores(pairs: Sequence[tuple[Item, str]], rule: str) -> Iterator[Score]:
    marks: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, answer in pairs:
        marks[item.category][item.group].append(RULES[rule](answer) == item.answer)
    single, both = {}, {}
    for name, groups in marks.items():
        single[name] = 100 * sum(map(sum, groups.values())) / sum(map(len, groups.values()))
        both[name] = 100 * sum(map(all, groups.values())) / len(groups)
    for name, categories in (("total", CATEGORIES), ("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [one for one in categories if one in marks]
        if present:
            points = sum(single[one] + both[one] for one in present)
            n = sum(len(marks[one]) for one in present)
            yield Score(name=name, rule=rule, value=points, most=MOST * len(present), n=n)
    for name in (one for one in CATEGORIES if one in marks):
        n = len(marks[name])
        yield Score(name=name, rule=rule, value=single[name] + both[name], most=MOST, n=n)
        yield Score(name=f"{name} acc", rule=rule, value=single[name], most=100.0, n=2 * n)
        yield Score(name=f"{name} acc+", rule=rule, value=both[name], most=100.0, n=n)


def _of_table(path: Path) -> Iterator[Item]:
    counts: Counter[str] = Counter()
    for row in table_rows(path):
        category = row["category"]
        if category not in CATEGORIES:
            raise BenchmarkError(f"{row.where} is of the category {category[:64]!r}, which MME has not.")
        name = row.texts.get("question_id") or row.texts.get("image_path") or row.picture.key
        group = name if name.startswith(f"{category}/") else f"{category}/{name}"
        counts[group] += 1
        yield Item(
            index=row.texts.get("index") or f"{group}#{counts[group]}",
            group=group,
            picture=row.picture,
            question=row["question"],
            answer=_yes_or_no(row["answer"], row.where),
            category=category,
        )


def _of_folders(path: Path, categories: Sequence[str]) -> Iterator[Item]:
    for category in categories:
        layouts = [(path / category / one, path / category / two) for one, two in LAYOUTS]
        pictures, questions = next(layout for layout in layouts if layout[0].is_dir())
        for picture in sorted(pictures.iterdir()):
            if picture.suffix.lower() in PICTURES:
                group = f"{category}/{picture.name}"
                for number, (question, answer) in enumerate(_questions(questions / f"{picture.stem}.txt"), 1):
                    yield Item(
                        index=f"{group}#{number}",
                        group=group,
                        picture=PictureFile(picture),
                        question=question,
                        answer=answer,
                        category=category,
                    )


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file: a question, a tab, and its answer."""
    with opened(path) as file:
        data = file.read(MAX_QUESTIONS_BYTES + 1)
    if len(data) > MAX_QUESTIONS_BYTES:
        raise BenchmarkError(f"{path} is larger than {MAX_QUESTIONS_BYTES >> 10} KiB: fetch it again.")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path} is not UTF-8 ({error.reason}): fetch it again.") from error
    for line in filter(str.strip, lines):
        question, _, answer = line.rpartition("\t")
        yield question, _yes_or_no(answer, str(path))


def _yes_or_no(text: str, where: str) -> str:
    answer = text.strip().removesuffix(".").capitalize()
    if answer not in {"Yes", "No"}:
        raise BenchmarkError(f"{where} has the answer {text[:64]!r}, which is neither yes nor no.")
    return answer
