"""Blocks of a larger table, as engines for clusters hand them to a worker: a row for each row, in order.

``acestep_gguf.ray`` and ``acestep_gguf.daft`` are two engines' ways to it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow

from acestep_gguf.batch.input_tables import TAKEN
from acestep_gguf.batch.parquet import ROW_TYPES
from acestep_gguf.batch.rows import as_text, members_of, row_of
from acestep_gguf.batch.tasks import Task
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import AceStepError, ImageError, PromptError, UsageError
from acestep_gguf.grammar.json_schema import read_schema
from acestep_gguf.options import AnswerOptions, EngineOptions
from acestep_gguf.prompt.messages import user_message

PROMPT: Final = "prompt"
MANY: Final = EngineOptions(n_parallel=-1)
MOST_INT64: Final = 2**63 - 1
# Of members of answers, by the types that a schema gives them; a member of any other type is JSON.
MEMBER_TYPES: Final[Mapping[Any, Any]] = {
    "string": pyarrow.string(),
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "boolean": pyarrow.bool_(),
}


class BlockAnswerer:
    """A loaded bundle that turns tables of pictures into tables of answers.

    Args:
        bundle: folder that ``acestep-gguf convert`` wrote, on the worker's machine.
        prompt: question about each picture; a row may have its own in the column ``prompt``.
        image: column of pictures: bytes, paths, structs of both (Hugging Face's), or lists of these.
        id: column that names rows; by default ``id``, and without one the pictures' paths name them.
        system_prompt: what the model is told before each question.
        options: how answers are written. Of a JSON Schema, the properties become columns.
        engine: how the bundle is loaded; by default for as many answers together as fit.

    Raises:
        UsageError: ``prompt`` is empty; or what ``AceStep`` raises.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        image: str = "image",
        id: str = "id",
        system_prompt: str | None = None,
        options: AnswerOptions | None = None,
        engine: EngineOptions = MANY,
    ) -> None:
        if prompt is not None and not prompt.strip():
            raise UsageError("prompt is empty: ask something.", settings=["prompt"])
        self._prompt = prompt
        self._image = image
        self._id = id
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._options = options or AnswerOptions()
        self._members = member_types(self._options)
        self._model = AceStep(bundle, engine)

    def answer(self, block: pyarrow.Table) -> pyarrow.Table:
        """A row for each row of ``block``, in its order; what fails is the row's ``error``.

        Columns are those of ``batch``, the others of ``block`` as they are, and members of answers by the
        schema. Each block of the same columns gives the same columns and types.

        Raises:
            UsageError: there is no column of pictures, or one has a name that answers have.
        """
        if not isinstance(block, pyarrow.Table):
            raise UsageError('a block is no Arrow table: give batch_format="pyarrow".')
        own = (self._image, self._id, PROMPT)
        carried = [name for name in block.column_names if name not in own]
        if self._image not in block.column_names:
            raise UsageError(f"there is no column {self._image}: say with image which one has the pictures.")
        if taken := {"id", *TAKEN} & {*carried}:
            raise UsageError(f"there is a column {min(taken)}, which answers have, too: rename it.")
        asked = [*self._asked(block)]
        outcomes = self._outcomes([question for _, question in asked])
        rows = [row_of(task, outcome) for (task, _), outcome in zip(asked, outcomes, strict=True)]
        ids = block[self._id] if self._id in block.column_names else pyarrow.array([row.id for row in rows])
        table = {"id": ids, **_columns([msgspec.to_builtins(row) for row in rows], ROW_TYPES)}
        table |= {name: block[name] for name in carried}
        names = _member_names(self._members, table)
        members = _columns([members_of(row.text) for row in rows], self._members)
        return pyarrow.table(table | {names[member]: column for member, column in members.items()})

    def _asked(self, block: pyarrow.Table) -> Iterator[tuple[Task, Question | AceStepError]]:
        images, names, prompts = (_values(block, name) for name in (self._image, self._id, PROMPT))
        for cell, name, own in zip(images, names, prompts, strict=True):
            pictures = _pictures(cell)
            paths = tuple(Path(picture) for picture in pictures if isinstance(picture, str))
            prompt = self._prompt if own is None else str(own)
            known = name if isinstance(name, int) else str(name or next(iter(paths), ""))
            yield Task("", known, paths, prompt or "", {}), self._question(prompt, pictures)

    def _question(self, prompt: str | None, pictures: Sequence[Any]) -> Question | AceStepError:
        if not (prompt and prompt.strip()):
            return PromptError("there is no question: give a prompt.", settings=["prompt"])
        if not pictures or None in pictures:
            return ImageError("there is no picture in this row.")
        return Question([*self._system, user_message(prompt, pictures)], options=self._options)

    def _outcomes(self, questions: Sequence[Question | AceStepError]) -> list[Outcome]:
        """What became of each, in their order."""
        outcomes = {
            index: Outcome(index, error=question)
            for index, question in enumerate(questions)
            if isinstance(question, AceStepError)
        }
        indices = [index for index in range(len(questions)) if index not in outcomes]
        answerable = [question for question in questions if isinstance(question, Question)]
        for outcome in self._model.batch(answerable):
            outcomes[indices[outcome.index]] = outcome
        return [outcomes[index] for index in range(len(questions))]


def member_types(options: AnswerOptions) -> dict[str, Any]:
    """Types in Arrow of the properties that a JSON Schema names at its top; none without one."""
    if options.json_schema is None:
        return {}
    properties = read_schema(options.json_schema).get("properties", {})
    kinds = {
        name: schema.get("type") if isinstance(schema, Mapping) else None
        for name, schema in properties.items()
    }
    return {
        name: MEMBER_TYPES.get(kind if isinstance(kind, str) else None, pyarrow.string())
        for name, kind in kinds.items()
    }


def answer_types(options: AnswerOptions | None) -> dict[str, Any]:
    """Types in Arrow of all columns of an answer, without an id and what is carried through."""
    members = member_types(options or AnswerOptions())
    names = _member_names(members, {"id", *ROW_TYPES})
    return {**ROW_TYPES, **{names[member]: kind for member, kind in members.items()}}


def _member_names(members: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Columns of members; a name that is taken is called ``answer_…``, as in ``batch``."""
    names: dict[str, str] = {}
    for member in members:
        name = member
        while name in (*taken, *names.values()):
            name = f"answer_{name}"
        names[member] = name
    return names


def _values(block: pyarrow.Table, name: str) -> list[Any]:
    return block[name].to_pylist() if name in block.column_names else [None] * len(block)


def _pictures(cell: Any) -> list[Any]:
    """Bytes and paths in a cell; None in the place of what is neither."""
    if isinstance(cell, list):
        return [picture for each in cell for picture in _pictures(each)]
    if isinstance(cell, Mapping):  # Hugging Face's: the path is a name where there are bytes
        cell = cell.get("bytes") or cell.get("path")
    return [cell if isinstance(cell, str | bytes) and cell else None]


def _columns(rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: pyarrow.array([_value(row.get(name), kind) for row in rows], kind)
        for name, kind in types.items()
    }


def _value(value: Any, kind: Any) -> Any:
    """A value of this type in Arrow; one that has no place in it is null, and stays in ``text``."""
    if value is None:
        return None
    if pyarrow.types.is_string(kind):
        return as_text(value)
    if pyarrow.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST_INT64:
        return None
    return float(value) if pyarrow.types.is_floating(kind) else int(value)
