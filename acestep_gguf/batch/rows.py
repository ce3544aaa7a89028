"""A row of the table: what was asked, and what became of it."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec

from acestep_gguf.answer import Answer, FinishReason
from acestep_gguf.batch.tasks import Task
from acestep_gguf.engine.batch import Outcome


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a task: an answer or an ``error``; token counts are those of ``Usage``.

    ``path`` is a list where a question is about several pictures, None where it is about none. ``seconds``
    are those of pictures, prompt and answer, without loading.
    """

    id: str | int
    path: str | list[str] | None
    prompt: str
    text: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    seed: int | None = None
    error: str | None = None


COLUMNS: Final = Row.__struct_fields__


def row_of(task: Task, outcome: Outcome) -> Row:
    """The row of a task, from what the engine made of it."""
    known: dict[str, Any] = {"id": task.id, "path": task.path, "prompt": _readable(task.prompt)}
    if outcome.answer is None:
        return Row(**known, error=_readable(str(outcome.error)))
    return Row(**known, **_of_answer(outcome.answer))


def _of_answer(answer: Answer) -> dict[str, Any]:
    timings, usage = answer.timings, answer.usage
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "image_tokens": usage.image_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(timings.image_s + timings.prefill_s + timings.decode_s, 3),
        "seed": answer.seed,
    }


def _readable(text: str) -> str:
    """What an argument or a path had that is no Unicode is shown as �: a table is UTF-8."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def table_row(row: Row, task: Task, *, is_data: bool, taken: Iterable[str]) -> dict[str, Any]:
    """The cells of a row by their columns: of the row, of the task's fields, and of an answer that is data.

    Args:
        row: what became of ``task``.
        task: what was asked.
        is_data: whether the answer is JSON: if it is an object, its members become columns.
        taken: names of other columns; a member of such a name is called ``answer_…``.
    """
    cells = {**msgspec.to_builtins(row), **task.fields}
    for name, value in (members_of(row.text) if is_data else {}).items():
        column = name
        while column in cells or column in taken:
            column = f"answer_{column}"
        cells[column] = value
    return cells


def members_of(text: str | None) -> dict[str, Any]:
    """The members of an answer in JSON; none if it is not an object, or was cut short."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(text or "", type=dict[str, Any])
    return {}


def as_text(value: Any) -> str:
    """A value for a column of texts: what is none is written as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
