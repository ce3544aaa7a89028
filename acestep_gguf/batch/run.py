"""A batch from its tasks to its table: what is not answered yet is asked, and every answer kept at once."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from acestep_gguf.batch.journal import Journal
from acestep_gguf.batch.rows import Row, row_of
from acestep_gguf.batch.sidecars import SidecarKind, check_sidecars, finish_sidecars, write_sidecar
from acestep_gguf.batch.tables import check_output, write_table
from acestep_gguf.batch.tasks import Task
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.engine.question import Question
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.messages import user_message

# Shows a row that is done.
Show = Callable[[Row], None]


class Answerer(Protocol):
    """What answers: an ``AceStep``."""

    def batch(self, questions: Iterable[Question]) -> Generator[Outcome, None, None]:
        """Outcomes in any order, each with the number of its question."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the table has, in rows, and how many of them were made now; ``errors`` are among ``rows``."""

    rows: int
    errors: int
    made_now: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is to be asked, and where the answers go.

    Args:
        tasks: what to ask.
        output: file of the table: .jsonl, .csv or .parquet. Its journal lies beside it.
        settings: what the answers depend on, as JSON values: a journal of others is refused.
        options: how answers are written.
        system_prompt: what the model is told before each question.
        sidecar: kind of the file that each answer becomes beside its picture, if any.
        retry_errors: ask again what failed before.
        restart: forget earlier answers.
    """

    tasks: Sequence[Task]
    output: Path
    settings: dict[str, Any]
    options: AnswerOptions = field(default_factory=AnswerOptions)
    system_prompt: str | None = None
    sidecar: SidecarKind | None = None
    retry_errors: bool = False
    restart: bool = False

    def run(
        self,
        opened: Callable[[], AbstractContextManager[Answerer]],
        watching: Callable[[int, int], AbstractContextManager[Show]],
    ) -> Summary:
        """Ask what has no row yet, and write the table.

        Args:
            opened: loads the model; not called where there is nothing to ask.
            watching: gets how many tasks are done already, and how many there are; shows what is done then.

        Raises:
            AceStepError: what ends all. Every answer until then is kept.
        """
        check_output(self.output)
        with Journal(self.output, self.settings, restart=self.restart) as journal:
            if self.sidecar is not None:
                check_sidecars(self.tasks, self.sidecar, journal)
            missing = [task for task in self.tasks if self._is_missing(task, journal)]
            if missing:
                with watching(len(self.tasks) - len(missing), len(self.tasks)) as show, opened() as model:
                    self._ask(model, missing, journal, show)
            if self.sidecar is not None:
                finish_sidecars(self.tasks, self.sidecar, journal, is_data=self._is_data)
            write_table(self.output, self.tasks, journal, is_data=self._is_data)
            return Summary(len(self.tasks), sum(map(journal.is_error, self.tasks)), len(missing))

    def longest(self) -> Question:
        """A question than which none has more text or more pictures."""
        prompt = max((task.prompt for task in self.tasks), key=lambda prompt: len(prompt.encode()))
        images = max((task.images for task in self.tasks), key=len)
        return self._question(prompt, images)

    @property
    def _is_data(self) -> bool:
        return self.options.json_schema is not None

    def _is_missing(self, task: Task, journal: Journal) -> bool:
        return task not in journal or (self.retry_errors and journal.is_error(task))

    def _ask(self, model: Answerer, tasks: Iterable[Task], journal: Journal, show: Show) -> None:
        waiting: dict[int, Task] = {}  # by the numbers of their questions

        def questions() -> Iterator[Question]:
            for number, task in enumerate(tasks):
                waiting[number] = task
                yield self._question(task.prompt, task.images)

        with closing(model.batch(questions())) as outcomes:
            for outcome in outcomes:
                task = waiting.pop(outcome.index)
                row = row_of(task, outcome)
                journal.append(task, row)
                if self.sidecar is not None:
                    write_sidecar(task, row, self.sidecar, is_data=self._is_data)
                show(row)

    def _question(self, prompt: str, images: Sequence[Path]) -> Question:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return Question([*system, user_message(prompt, images)], options=self.options)
