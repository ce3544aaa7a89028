"""The ways in which a decoder is asked a benchmark's questions: for an answer, or for likelihoods of choices.

A pass is one way, of one decoder, through all questions. Its answers are in a journal from the moment that
they are there, as those of ``batch`` are, and in a table beside it when all of them are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from acestep_gguf.batch.journal import Journal, Settings
from acestep_gguf.batch.rows import Row, row_of
from acestep_gguf.batch.tasks import Entry, tasks_of
from acestep_gguf.engine.batch import Outcome
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import AceStepError, BenchmarkError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.score.benchmarks import Benchmark, Prompt
from acestep_gguf.score.item import Item, Score
from acestep_gguf.score.seedbench import BY_MEAN, BY_SUM, likelihood_scores, most_likely
from acestep_gguf.storage.atomic_file import opened_atomically, remove_partial
from acestep_gguf.vision.embeds_file import EmbedsFile

# Shows a row that is done.
Show = Callable[[Row], None]
SUFFIX: Final = ".jsonl"


class Likelihoods(msgspec.Struct, frozen=True):
    """Of each choice of an item, in their order: log-probabilities of its tokens summed, and how many."""

    sums: list[float]
    n_tokens: list[int]

    @property
    def means(self) -> list[float]:
        """Of a token of each choice."""
        return [total / count for total, count in zip(self.sums, self.n_tokens, strict=True)]


class Pass(ABC):
    """A context that holds the journal's lock.

    Args:
        benchmark: what is asked.
        prompts: by whose words: a key of ``prompt_of``.
        items: all questions.
        output: file of the table, without its suffix.
        settings: what answers depend on beside their questions; a journal of others is refused.
        options: how answers are written.
        restart: forget earlier answers.

    Raises:
        BatchError: the journal is of other settings, in use, or cannot be written.
    """

    way: str

    def __init__(
        self,
        *,
        benchmark: Benchmark,
        prompts: str,
        items: Sequence[Item],
        output: Path,
        settings: Settings,
        options: AnswerOptions,
        restart: bool,
    ) -> None:
        self.prompts = prompts
        self._benchmark = benchmark
        self._items = items
        self._options = options
        self._table = output.with_name(output.name + SUFFIX)
        entries = [Entry(item.index, (Path(item.picture.key),), self._asked(item)) for item in items]
        self._tasks = {str(task.id): task for task in tasks_of(entries, ())}
        self._journal = Journal(self._table, settings, restart=restart)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._journal.__exit__(*details)

    @property
    def n_errors(self) -> int:
        """Questions that failed."""
        return sum(map(self._journal.is_error, self._tasks.values()))

    def is_missing(self, item: Item) -> bool:
        """Whether there is no answer yet, or it failed."""
        task = self._tasks[item.index]
        return task not in self._journal or self._journal.is_error(task)

    def longest(self, picture: EmbedsFile) -> Question:
        """A question than which none is longer."""
        longest = max(self._items, key=lambda item: len(self._asked(item).encode()))
        return Question(self._asked(longest), [picture], self._options)

    def refuse(self, item: Item, error: AceStepError, show: Show) -> None:
        """Keep why an item cannot be asked."""
        self._keep(item, row_of(self._tasks[item.index], Outcome(0, error=error)), show)

    @abstractmethod
    def ask(self, model: AceStep, asked: Sequence[tuple[Item, EmbedsFile]], show: Show) -> None:
        """Ask items about their pictures, and keep each answer at once."""

    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """What the answers, all of which are there, are worth; none if the right ones are not published."""

    def write_table(self) -> None:
        """Write all answers as JSON lines, in the order of the items.

        Raises:
            BenchmarkError: it cannot be written.
        """
        try:
            remove_partial([self._table])
            with opened_atomically(self._table) as file:
                for item, row in self._rows():
                    known = {"index": item.index, "category": item.category, "expected": item.answer}
                    line = {**known, **self._line(item, row), "error": row.error}
                    file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise BenchmarkError(
                f"{self._table} cannot be written ({error.strerror}): make room; the same command writes it."
            ) from error

    @abstractmethod
    def _asked(self, item: Item) -> str:
        """All that the answer depends on, beside the picture."""

    @abstractmethod
    def _line(self, item: Item, row: Row) -> dict[str, Any]:
        """What the table says of an item."""

    def _rows(self) -> Iterator[tuple[Item, Row]]:
        return ((item, self._journal.row(self._tasks[item.index])) for item in self._items)

    def _keep(self, item: Item, row: Row, show: Show) -> None:
        self._journal.append(self._tasks[item.index], row)
        show(row)

    def _is_published(self) -> bool:
        return any(item.answer is not None for item in self._items)


class AnswersPass(Pass):
    """The decoder writes an answer to each question; rules find a letter, a word or a number in it."""

    way = "answers"

    def ask(self, model: AceStep, asked: Sequence[tuple[Item, EmbedsFile]], show: Show) -> None:
        """Ask items about their pictures, several at a time, and keep each answer at once."""
        questions = (Question(self._asked(item), [picture], self._options) for item, picture in asked)
        with closing(model.batch(questions)) as outcomes:
            for outcome in outcomes:
                item, _ = asked[outcome.index]
                self._keep(item, row_of(self._tasks[item.index], outcome), show)

    def scores(self) -> tuple[Score, ...]:
        """By the benchmark's rules; what failed counts as an empty answer."""
        answers = {item.index: row.text or "" for item, row in self._rows()}
        return self._benchmark.score(self._items, answers) if self._is_published() else ()

    def _asked(self, item: Item) -> str:
        return self._benchmark.prompts[self.prompts](item)

    def _line(self, item: Item, row: Row) -> dict[str, Any]:
        is_known = item.answer is not None and row.text is not None
        return {
            "prompt": row.prompt,
            "answer": row.text,
            "finish_reason": row.finish_reason,
            "right": self._benchmark.right_by_rule(item, row.text or "") if is_known else None,
        }


class LikelihoodPass(Pass):
    """The decoder says how probable the text of each choice is as its answer, after a space.

    lmms-eval puts the space there (its ``target_delimiter``); the official tool's prompt ends before one.
    """

    way = "likelihood"

    def ask(self, model: AceStep, asked: Sequence[tuple[Item, EmbedsFile]], show: Show) -> None:
        """Rank the choices of items, one item after another."""
        for item, picture in asked:
            task = self._tasks[item.index]
            prompt = self._prompt(item)
            try:
                question = Question(prompt, [picture], self._options)
                found = model.likelihoods(question, self._texts(item))
            except AceStepError as error:
                self.refuse(item, error, show)
                continue
            kept = Likelihoods([one.sum for one in found], [len(one.tokens) for one in found])
            row = Row(id=task.id, path=task.path, prompt=prompt, text=msgspec.json.encode(kept).decode())
            self._keep(item, row, show)

    def scores(self) -> tuple[Score, ...]:
        """By sum and by mean; what failed counts as wrong."""
        found = {item.index: _kept(row) for item, row in self._rows() if row.text is not None}
        sums = {index: kept.sums for index, kept in found.items()}
        means = {index: kept.means for index, kept in found.items()}
        return likelihood_scores(self._items, sums, means) if self._is_published() else ()

    def _prompt(self, item: Item) -> str:
        return self._benchmark.likelihood_prompts[self.prompts](item)

    def _texts(self, item: Item) -> list[str]:
        return [f" {text}" for text in item.choices.values()]

    def _asked(self, item: Item) -> str:
        return "\n".join((self._prompt(item), *self._texts(item)))

    def _line(self, item: Item, row: Row) -> dict[str, Any]:
        line: dict[str, Any] = {"prompt": self._prompt(item), "choices": dict(item.choices)}
        if row.text is None:
            return line
        kept = _kept(row)
        right = {
            rule: most_likely(item, given) == item.answer
            for rule, given in ((BY_SUM, kept.sums), (BY_MEAN, kept.means))
        }
        return {
            **line,
            "sums": dict(zip(item.choices, kept.sums, strict=True)),
            "means": dict(zip(item.choices, kept.means, strict=True)),
            "right": None if item.answer is None else right,
        }


def _kept(row: Row) -> Likelihoods:
    try:
        return msgspec.json.decode(row.text or "", type=Likelihoods)
    except msgspec.MsgspecError as error:
        raise BenchmarkError(
            "a journal has likelihoods that are none: begin anew with restart=True.", settings=["restart"]
        ) from error


def prompts_of(benchmark: Benchmark, prompts: str | None) -> list[tuple[type[Pass], str]]:
    """The passes that a harness makes through a benchmark; by default the usual answers and likelihoods.

    Raises:
        BenchmarkError: there are no such prompts.
    """
    ways: tuple[tuple[type[Pass], Mapping[str, Prompt]], ...] = (
        (AnswersPass, benchmark.prompts),
        (LikelihoodPass, benchmark.likelihood_prompts),
    )
    if prompts is None:
        return [(kind, next(iter(known))) for kind, known in ways if known]
    found = [(kind, prompts) for kind, known in ways if prompts in known]
    if not found:
        names = dict.fromkeys(name for _, known in ways for name in known)
        raise BenchmarkError(
            f"{benchmark.title} has no prompts={prompts}: choose from {', '.join(names)}.",
            settings=["prompts"],
        )
    return found
