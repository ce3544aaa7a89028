"""A bundle's decoders answer a benchmark: every answer is kept at once, and scored when all are there."""

import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Final

from acestep_gguf.batch.settings import settings_of
from acestep_gguf.bundle.names import DecoderFtype, ftype_from
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BenchmarkError, UsageError
from acestep_gguf.options import AnswerOptions, EngineOptions, check_integer
from acestep_gguf.score.benchmarks import BENCHMARKS, Benchmark
from acestep_gguf.score.block_embeds import BlockEmbeds
from acestep_gguf.score.item import Item
from acestep_gguf.score.passes import Pass, Show, prompts_of
from acestep_gguf.score.report import DecoderScores, PassScores, ScoreReport
from acestep_gguf.vision.embeds_file import EmbedsFile

# As many answers together as suit the machine.
MANY: Final = EngineOptions(n_parallel=-1)
# Embeds on disk at a time: thousands of pictures of a large model have more than a disk.
BLOCK_BYTES: Final = 4 * 2**30

Watching = Callable[[int, int], AbstractContextManager[Show]]


def score_bundle(
    folder: Path,
    benchmark: str,
    file: Path,
    *,
    output: Path,
    quants: Sequence[str] = (),
    prompts: str | None = None,
    limit: int | None = None,
    max_tokens: int = 512,
    options: EngineOptions = MANY,
    restart: bool = False,
    watching: Watching = lambda *_: nullcontext(lambda _: None),
) -> ScoreReport:
    """Ask decoders of a bundle all questions of a benchmark, and score their answers.

    The tower encodes each picture once, whatever the number of decoders. The same call carries on where it
    was stopped, and asks again what failed.

    Args:
        folder: of the bundle.
        benchmark: "mme", "mmbench", "seedbench" or "mathvista".
        file: as it was published: docs/score.md says in which forms.
        output: folder for answers and scores; made if it is not there.
        quants: decoders; by default the bundle's default.
        prompts: by whose words to ask, "vlmevalkit", "lmms-eval" or "official"; by default the usual.
        limit: of questions; what belongs together, such as MME's pairs, is one question.
        max_tokens: of an answer at most.
        options: how the bundle is loaded, but for ``quant`` and ``cache``.
        restart: forget earlier answers.
        watching: gets how many answers are there already, and how many there will be; shows what is done.

    Raises:
        BenchmarkError: the file is no such benchmark, or ``output`` cannot be written.
        BatchError: answers in ``output`` were given with other settings, or another process writes them.
        UsageError: there is no such benchmark, it has no such prompts, or a number is out of its range.
        BundleError, PromptError: no sound bundle, or it cannot see.
        MemoryShortageError, DecodeError: a decoder cannot be run.
    """
    found = _benchmark(benchmark)
    read = Bundle.read(folder)
    read.tower()
    answering = AnswerOptions(max_tokens=max_tokens)
    ftypes: list[DecoderFtype] = [*dict.fromkeys(map(ftype_from, quants))]
    ftypes = ftypes or [read.decoders.default]
    if limit is not None:
        check_integer("limit", limit, 1, 2**31 - 1)
    items = _first_groups(found.read(file.absolute()), limit)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"{output} cannot be made ({error.strerror}): give another output.") from error
    embeds = BlockEmbeds(output / "embeds", folder, vision=options.vision, n_threads=options.n_threads)
    with _locked(output), ExitStack() as stack:
        passes: dict[DecoderFtype, list[Pass]] = {}
        for ftype in ftypes:
            settings = settings_of(
                read, replace(options, quant=ftype), answering, prompts=(), system_prompt=None
            )
            passes[ftype] = [
                stack.enter_context(
                    kind(
                        benchmark=found,
                        prompts=words,
                        items=items,
                        output=output / f"{ftype}-{words}-{kind.way}",
                        settings=settings,
                        options=answering,
                        restart=restart,
                    )
                )
                for kind, words in prompts_of(found, prompts)
            ]
        run = _Run(folder, items, passes, embeds, replace(options, cache=False))
        run.ask(watching)
        for one in run.passes:
            one.write_table()
        return ScoreReport(
            bundle=read.name,
            benchmark=found.name,
            title=found.title,
            questions=len(items),
            pictures=len({item.picture.key for item in items}),
            card=found.card,
            limits=found.limits,
            decoders=tuple(
                DecoderScores(decoder=ftype, passes=tuple(map(_pass_scores, its)))
                for ftype, its in passes.items()
            ),
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out, which would remove embeds; the system lets go when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BenchmarkError(
                f"another process writes into {folder}: wait for it, or give another output.",
                settings=["output"],
            ) from error
        yield
    finally:
        os.close(descriptor)


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark {name!r} here: choose from {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def _first_groups(items: Sequence[Item], limit: int | None) -> list[Item]:
    groups = set(islice(dict.fromkeys(item.group for item in items), limit))
    return [item for item in items if item.group in groups]


def _pass_scores(one: Pass) -> PassScores:
    return PassScores(prompts=one.prompts, way=one.way, errors=one.n_errors, scores=one.scores())


class _Run:
    """Goes through a benchmark, a block of pictures at a time: first the tower, then each decoder.

    Args:
        folder: of the bundle.
        items: all questions.
        by_ftype: the passes of each decoder.
        embeds: of the pictures of a block.
        options: how the bundle is loaded, but for the decoder.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[Item],
        by_ftype: Mapping[DecoderFtype, Sequence[Pass]],
        embeds: BlockEmbeds,
        options: EngineOptions,
    ) -> None:
        self._folder = folder
        self._by_ftype = by_ftype
        self._embeds = embeds
        self._options = options
        self.passes = [one for its in by_ftype.values() for one in its]
        # A picture's questions follow one another, so that a decoder reads it once.
        by_picture: defaultdict[str, list[Item]] = defaultdict(list)
        for item in items:
            by_picture[item.picture.key].append(item)
        self._by_picture = by_picture

    def ask(self, watching: Watching) -> None:
        """Ask in all passes what has no answer yet."""
        missing = [its for its in self._by_picture.values() if any(map(self._n_missing, its))]
        n_missing = sum(self._n_missing(item) for its in missing for item in its)
        if not n_missing:
            self._embeds.forget()  # a kill may have come after the last answer
            return
        n_all = len(self.passes) * sum(map(len, self._by_picture.values()))
        n_pictures = max(1, BLOCK_BYTES // self._embeds.bytes_per_picture)
        with watching(n_all - n_missing, n_all) as show:
            for start in range(0, len(missing), n_pictures):
                self._ask_block(missing[start : start + n_pictures], show)
                self._embeds.forget()

    def _n_missing(self, item: Item) -> int:
        return sum(one.is_missing(item) for one in self.passes)

    def _ask_block(self, block: Sequence[Sequence[Item]], show: Show) -> None:
        """Ask all questions about some pictures, each a list of them."""
        encoded = self._embeds.encode(its[0].picture for its in block)
        seen: list[tuple[Item, EmbedsFile]] = []
        for its in block:
            picture = encoded[its[0].picture.key]
            if isinstance(picture, EmbedsFile):
                seen += [(item, picture) for item in its]
            else:
                for one, item in product(self.passes, its):
                    if one.is_missing(item):
                        one.refuse(item, picture, show)
        for ftype, passes in self._by_ftype.items():
            asked = [[(item, picture) for item, picture in seen if one.is_missing(item)] for one in passes]
            if not any(asked):
                continue
            longest = max(
                (one.longest(seen[0][1]) for one in passes), key=lambda question: len(question.prompt)
            )
            with AceStep(self._folder, replace(self._options, quant=ftype), longest=longest) as model:
                for one, missing in zip(passes, asked, strict=True):
                    one.ask(model, missing, show)
