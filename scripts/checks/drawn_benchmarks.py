"""Draw questions in the official file formats of MME, MMBench, SEED-Bench and MathVista.

The pictures are those of the demo checkpoint, so that its answers are real ones. Each set is written in every
form in which it is published; names differ from the official ones, which VLMEvalKit would download anew.
"""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import pyarrow
from PIL import Image
from pyarrow import parquet

from scripts.demo.questions import DIRECTIONS, Question, questions, with_article
from scripts.demo.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    Label,
    Picture,
    Scene,
    draw,
    random_chart,
    random_number,
    random_scene,
    random_word,
)

Row = dict[str, Any]
SKILL_COLUMNS: Final = ("numbers", "words", "counting", "bars", "colour", "shape", "place")
# The skills of the demo checkpoint's questions, as SEED-Bench and MMBench would call them.
SEED_TYPES: Final = {"place": 4, "counting": 5, "colour": 3, "shape": 2, "words": 9, "numbers": 9, "bars": 8}
ABILITIES: Final = {
    "place": "relation_reasoning",
    "counting": "finegrained_perception (cross-instance)",
    "colour": "attribute_reasoning",
    "shape": "finegrained_perception (instance-level)",
    "words": "coarse_perception",
    "numbers": "coarse_perception",
    "bars": "logic_reasoning",
}
SEED_NAMES: Final = {
    "Scene Understanding": 1, "Instance Identity": 2, "Instance Attributes": 3, "Instance Location": 4,
    "Instances Counting": 5, "Spatial Relation": 6, "Instance Interaction": 7, "Visual Reasoning": 8,
    "Text Understanding": 9,
}  # fmt: skip
HINTS: Final = {
    "text": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Please answer the question requiring an integer answer and provide the final value, "
    "e.g., 1, 2, 3, at the end.",
    "float": "Please answer the question requiring a floating-point number with one decimal place and "
    "provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, "
    "e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}


@dataclass(frozen=True)
class Drawn:
    """A set's files: each form of it, and of these the ones that the two harnesses read."""

    forms: tuple[Path, ...]
    tsv: Path
    parquet: Path


def draw_all(folder: Path, seed: int) -> dict[str, Drawn]:
    """The four sets, by the names of ``BENCHMARKS``, in ``folder``, VLMEvalKit's LMUData."""
    folder.mkdir(parents=True, exist_ok=True)
    drawers = {"mme": _mme, "mmbench": _mmbench, "seedbench": _seedbench, "mathvista": _mathvista}
    return {name: drawer(folder, Random(f"{seed}/{name}")) for name, drawer in drawers.items()}


def _mme(folder: Path, rng: Random) -> Drawn:
    """Pairs of questions about 112 pictures in eight categories, one of them of cognition."""
    kinds = ("existence", "count", "position", "color", "OCR", "scene", "posters", "numerical_calculation")
    rows: list[Row] = []
    for number in range(112):
        category = kinds[number % len(kinds)]
        picture = _picture_for(category, rng)
        name = f"{category}/{number:04}.png"
        data = _png(picture, rng)
        _write(folder / "MME" / name, data)
        asked = _yes_and_no(category, picture, rng)
        lines = [f"{text} Please answer yes or no.\t{answer}\n" for text, answer in asked]
        _write(folder / "MME" / category / f"{number:04}.txt", "".join(lines).encode())
        for line in lines:
            question, answer = line.strip().split("\t")
            rows.append(
                {"data": data, "name": name, "question": question, "answer": answer, "category": category}
            )
    tsv = _write_tsv(
        folder / "MME_drawn.tsv",
        [
            {"index": number, "image": _base64(row), "image_path": row["name"].replace("/", "_")}
            | {key: row[key] for key in ("question", "answer", "category")}
            for number, row in enumerate(rows)
        ],
    )
    table = _write_parquet(
        folder / "mme/test.parquet",
        [
            {"question_id": row["name"], "image": _image(row)}
            | {key: row[key] for key in ("question", "answer", "category")}
            for row in rows
        ],
    )
    return Drawn((folder / "MME", tsv, table), tsv, table)


def _picture_for(category: str, rng: Random) -> Picture:
    if category == "OCR":
        return random_word(rng)
    if category == "numerical_calculation":
        return random_number(rng, held_out=True)
    return random_scene(rng, held_out=True, least=2)


def _yes_and_no(category: str, picture: Picture, rng: Random) -> list[tuple[str, str]]:
    """A question whose answer is Yes, and one whose answer is No, in either order."""
    if isinstance(picture, Label):
        kind = "number" if picture.text.isdigit() else "word"
        asked = [(f"Is the {kind} {text}?", answer) for text, answer in ((picture.text, "Yes"), ("7X", "No"))]
    else:
        assert isinstance(picture, Scene)
        one, two = picture.objects[:2]
        here, there = divmod(one.cell, 3), divmod(two.cell, 3)
        if category == "position":
            truth = {name: lies(there, here) for name, lies in DIRECTIONS.items()}
            told = [
                (rng.choice([name for name in truth if truth[name] is said]), said) for said in (True, False)
            ]
            asked = [
                (f"Is the {one.name} {name} the {two.name}?", "Yes" if said else "No") for name, said in told
            ]
        elif category == "count":
            count = len(picture.objects)
            asked = [(f"Are there {n} objects?", said) for n, said in ((count, "Yes"), (count + 1, "No"))]
        elif category in {"color", "posters"}:
            other = rng.choice([name for name in COLOURS if name != one.colour])
            place = PLACES[one.cell]
            asked = [
                (f"Is the object {place} {c}?", said) for c, said in ((one.colour, "Yes"), (other, "No"))
            ]
        else:
            looks = {thing.name for thing in picture.objects}
            names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
            absent = rng.choice([name for name in names if name not in looks])
            asked = [
                (f"Is there {with_article(n)}?", said) for n, said in ((one.name, "Yes"), (absent, "No"))
            ]
    rng.shuffle(asked)
    return asked


def _mmbench(folder: Path, rng: Random) -> Drawn:
    """72 questions with two to four options, in all rotations, of two splits."""
    rows: list[Row] = []
    for number, (data, asked, options) in enumerate(_with_options(72, rng, least=2)):
        right = options.index(asked.answer)
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            letter = "ABCD"[(right - turn) % len(options)]
            rows.append(
                {"index": number + turn * 10**6, "question": asked.text, "data": data}
                | {"hint": "The picture is drawn." if number % 3 == 0 else None, "answer": letter}
                | {name: turned[place] if place < len(turned) else None for place, name in enumerate("ABCD")}
                | {"category": asked.skill, "l2-category": ABILITIES[asked.skill]}
                | {"split": "val" if number % 6 == 5 else "dev", "source": "drawn"}
            )
    tsv = _write_tsv(
        folder / "MMBench_drawn.tsv",
        [
            {key: value for key, value in row.items() if key != "data"}
            | {"image": _base64(row) if row["index"] < 10**6 else row["index"] % 10**6}
            for row in rows
        ],
    )
    unnamed = {"data", "l2-category"}
    dev = [row for row in rows if row["split"] == "dev"]  # lmms-eval has a file for each split
    table = _write_parquet(
        folder / "mmbench/dev.parquet",
        [
            {key: "nan" if row[key] is None else row[key] for key in row if key not in unnamed}
            | {"L2-category": row["l2-category"], "image": _image(row), "comment": "nan"}
            for row in dev
        ],
    )
    return Drawn((tsv, table), tsv, table)


def _seedbench(folder: Path, rng: Random) -> Drawn:
    """220 questions with four options, and one about a video, which has to be left out."""
    names = {number: name for name, number in SEED_NAMES.items()}
    rows: list[Row] = []
    for number, (data, asked, options) in enumerate(_with_options(220, rng, least=4)):
        kind = SEED_TYPES[asked.skill]
        _write(folder / "SEED-Bench-image" / f"{number}_9", data)
        rows.append(
            {"answer": "ABCD"[options.index(asked.answer)], "data_id": f"{number}_9", "data_type": "image"}
            | {f"choice_{letter}": text for letter, text in zip("abcd", options, strict=True)}
            | {"question": asked.text, "question_id": str(100_000 + number), "question_type_id": kind}
            | {"data": data}
        )
    video = rows[0] | {"data_id": "1.webm", "data_type": "video", "question_id": "v1", "question_type_id": 10}
    published = [{key: row[key] for key in row if key != "data"} for row in (*rows, video)]
    official = folder / "SEED-Bench.json"
    official.write_text(json.dumps({"questions": published, "question_type": SEED_NAMES}))
    tsv = _write_tsv(
        folder / "SEEDBench_IMG_drawn.tsv",
        [
            {"index": row["question_id"], "image": _base64(row), "question": row["question"]}
            | {letter: row[f"choice_{letter.lower()}"] for letter in "ABCD"}
            | {"answer": row["answer"], "category": names[row["question_type_id"]]}
            for row in rows
        ],
    )
    table = _write_parquet(
        folder / "seedbench/test.parquet",
        [
            {key: row[key] for key in row if key != "data"} | {"image": [_image(row)], "segment": None}
            for row in rows
        ],
    )
    return Drawn((official, tsv, table), tsv, table)


def _mathvista(folder: Path, rng: Random) -> Drawn:
    """220 questions for an option, an integer, a number with a decimal place, or a list."""
    rows: list[Row] = []
    for number, (data, asked, options) in enumerate(_with_options(220, rng, least=4)):
        kind = ("text", "integer", "float", "list")[number % 4]
        answer, choices = asked.answer, options if kind == "text" else None
        if kind != "text":
            value = Random(f"{number}").randint(0, 40) if not answer.isdigit() else int(answer)
            answer = {"integer": str(value), "float": str(value / 10), "list": f"[{value}, {value + 3}]"}[
                kind
            ]
        unit = "cm" if kind == "float" and number % 3 == 0 else None
        question = f"{asked.text}" + (f" (Unit: {unit})" if unit else "")
        query = f"Hint: {HINTS[kind]}\nQuestion: {question}"
        if choices:
            query += "\nChoices:" + "".join(
                f"\n({letter}) {text}" for letter, text in zip("ABCD", choices, strict=True)
            )
        name = f"images/{number + 1}.png"
        _write(folder / name, data)
        metadata = {"task": f"{asked.skill} task", "skills": ["arithmetic reasoning", f"{kind} reading"]}
        metadata |= {"category": "general-vqa", "context": "synthetic scene", "grade": "daily life"}
        metadata |= {"language": "english", "source": "drawn", "split": "testmini"}
        rows.append(
            {"pid": str(number + 1), "question": asked.text, "image": name, "choices": choices, "unit": unit}
            | {"precision": 1.0 if kind == "float" else None, "answer": answer, "answer_type": kind}
            | {"question_type": "multi_choice" if choices else "free_form", "query": query}
            | {"metadata": metadata, "data": data}
        )
    official = folder / "testmini.json"
    official.write_text(
        json.dumps({row["pid"]: {key: row[key] for key in row if key != "data"} for row in rows})
    )
    tsv = _write_tsv(
        folder / "MathVista_MINI_drawn.tsv",
        [
            {"index": row["pid"], "image": _base64(row), "question": row["query"], "answer": row["answer"]}
            | {key: row[key] for key in ("question_type", "answer_type", "precision")}
            | {"choices": None if row["choices"] is None else str(row["choices"])}
            | {
                "answer_option": None
                if row["choices"] is None
                else "ABCD"[row["choices"].index(row["answer"])]
            }
            | {"task": row["metadata"]["task"], "skills": str(row["metadata"]["skills"])}
            for row in rows
        ],
    )
    table = _write_parquet(
        folder / "mathvista/testmini.parquet",
        [{key: row[key] for key in row if key != "data"} | {"decoded_image": _image(row)} for row in rows],
    )
    return Drawn((official, tsv, table), tsv, table)


def _with_options(count: int, rng: Random, least: int) -> Iterator[tuple[bytes, Question, list[str]]]:
    """Pictures with a question each and its options, ``least`` to four, mixed."""
    for number in range(count):
        skill = SKILL_COLUMNS[number % len(SKILL_COLUMNS)]
        picture, asked = _asked(skill, rng)
        others = {asked.answer.casefold(): asked.answer}
        while len(others) < 4:  # what is right of other pictures
            answer = _asked(skill, rng)[1].answer
            others.setdefault(answer.casefold(), answer)
        options = [*others.values()][: rng.randint(least, 4)]
        rng.shuffle(options)
        yield _png(picture, rng), asked, options


def _asked(skill: str, rng: Random) -> tuple[Picture, Question]:
    while True:
        picture: Picture
        if skill == "numbers":
            picture = random_number(rng, held_out=True)
        elif skill == "words":
            picture = random_word(rng)
        elif skill == "bars":
            picture = random_chart(rng)
        else:
            picture = random_scene(rng, held_out=True, least=2)
        found = [one for one in questions(picture, rng) if one.skill == skill]
        if found:
            return picture, rng.choice(found)


def _png(picture: Picture, rng: Random) -> bytes:
    image: Image.Image = draw(picture, rng)[0]
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _base64(row: Mapping[str, Any]) -> str:
    return base64.b64encode(row["data"]).decode()


def _image(row: Mapping[str, Any]) -> Row:
    return {"bytes": row["data"], "path": None}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_tsv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    return path
