"""The Python API: ``AceStep(bundle).generate("What is this?", images=["photo.jpg"])``."""

import os
import weakref
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from inspect import GEN_SUSPENDED, getgeneratorstate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from acestep_gguf.answer import Answer, Chunk
from acestep_gguf.bundle.decoder_info import check_vocabulary
from acestep_gguf.bundle.names import vision_precision_from
from acestep_gguf.bundle.schema import check_file
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.draft_model import DraftModel
from acestep_gguf.decoding.kv_states import KVStates, decoder_facts
from acestep_gguf.decoding.speculation import Speculation
from acestep_gguf.engine.answer_writer import AnswerWriter
from acestep_gguf.engine.async_batch import Questions, answer_all_async
from acestep_gguf.engine.batch import OneAtATime, Outcome, Stepwise, answer_all
from acestep_gguf.engine.likelihood import Likelihood, LikelihoodReader
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.scheduler import ENCODED_AHEAD, Scheduler
from acestep_gguf.engine.turns import Stopwatch, Turnstile
from acestep_gguf.engine.workload import plan_here, workload_of
from acestep_gguf.engine.writing import Spelling
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.options import AnswerOptions, EngineOptions, changed
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.draft import Draft, open_draft
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.plan.settings import Settings
from acestep_gguf.progress import Progress, Report, report_nothing
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import Message
from acestep_gguf.storage.disk_cache import DiskCache, default_folder
from acestep_gguf.vision.encoder import ImageEncoder, Picture, PictureSource

if TYPE_CHECKING:
    from acestep_gguf.prefill.prompt_reader import PromptReader


class AceStep:
    """A bundle, ready to answer questions about pictures.

    One answer at a time: ``generate`` and ``stream`` may be called from any thread, and wait for the answer
    that is being written. A stream holds its turn from its first chunk until it is exhausted or closed, for
    the thread that took its last chunk: any thread may go on with it, but that one cannot begin another
    answer meanwhile (UsageError), since it would wait for itself. ``close`` waits too, and ends a stream
    whose turn is its own thread's; every call after it, and the first chunk of a stream not begun, raises
    UsageError. Leaving a ``with`` block closes.

    Args:
        bundle: folder that ``acestep-gguf convert`` wrote.
        options: how it is loaded.
        first: what will be asked first, if it is known: the context is made no larger than it needs, its
            pictures are opened before anything is loaded, and where memory has no room for tower and decoder
            together, they are encoded before the decoder is loaded, and the tower is freed.
        longest: in the place of ``first``: none of many questions will have more tokens or pictures.
        on_progress: called while something is loaded, and by ``generate`` and ``stream`` up to the first
            token, in their thread.
        changes: fields of ``options`` by their names, such as ``n_ctx=4096``.

    What the options leave open is planned, so that it fits this machine and suits it (see plan/planner.py and
    plan/machine_settings.py); ``plan`` and ``settings_reason`` say what and why.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: an option is out of its range.
        ImageError, PromptError: a picture of ``first`` is damaged, or the bundle cannot see.
        MemoryShortageError: it cannot fit this machine; the message says what would.
        DecodeError: llama.cpp cannot load the decoder.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        options: EngineOptions | None = None,
        *,
        first: Question | None = None,
        longest: Question | None = None,
        on_progress: Report = report_nothing,
        **changes: Any,
    ) -> None:
        options = changed(options or EngineOptions(), changes)
        self._turnstile = Turnstile()
        self._streams: weakref.WeakSet[Generator[Chunk, None, None]] = weakref.WeakSet()
        self._closed = False
        self._loading = Stopwatch()
        self._report = on_progress
        self._report(Progress("loading"))
        with self._loading:
            files = BundleModel(_folder(bundle))
            self.bundle = files.bundle
            defaults, self.settings_reason = machine_settings(
                self.bundle, self.bundle.decoder(options.quant), pictures=self.bundle.vision is not None
            )
            draft = (
                None if options.draft is None else open_draft(_folder(options.draft), files, options.quant)
            )
            workload = workload_of(files, first, longest, options)
            self.plan = plan_here(files, options, workload, defaults, draft)
            self._cache = _cache(options.cache)
            wanted = None if options.vision is None else vision_precision_from(options.vision)
            self._encoder = ImageEncoder(
                files.folder,
                self.bundle,
                n_threads=self.settings.tower_threads,
                precision=self.settings.vision or wanted,
                provider=self.settings.vision_provider,
                image_tokens=options.image_tokens,
                max_tiles=options.max_tiles,
                cache=self._cache,
                opening_limit=self.plan.opening_limit,
            )
            self.info = files.decoder(self.settings.quant).info
            self._begin_with(first)
            self._reader = self._load_int8_layers(files)
            self._decoders = self._load_decoders(files, self._reader)
            self._decoder = self._decoders[0]
            self._speculation = Speculation(
                options.spec_type, options.draft_max, self._load_draft(draft, options)
            )
            model = self._decoder.context.model
            self._prompts = PromptBuilder(self.bundle.prompt, model.tokenize, model.token_bytes)
            self._spelling = Spelling(self.bundle.prompt, model)
            self._writer = AnswerWriter(
                prompts=self._prompts,
                spelling=self._spelling,
                encoder=self._encoder,
                decoder=self._decoder,
                speculation=self._speculation,
                cache=self._cache,
                loading=self._loading,
                report=self._report,
            )

    @property
    def settings(self) -> Settings:
        """All settings that are in force."""
        return self.plan.settings

    def generate(
        self,
        prompt: str | Sequence[Message] | Question,
        images: Sequence[PictureSource] = (),
        options: AnswerOptions | None = None,
        **changes: Any,
    ) -> Answer:
        """The whole answer to ``prompt``.

        Args:
            prompt: a question, or messages (see messages.py); or a Question, which has all of this.
            images: pictures, each a path, bytes, a PIL image, an EmbedsFile or what ``prepare_image`` gave;
                with messages, for image parts without one.
            options: how the answer is written.
            changes: fields of ``options`` by their names, such as ``max_tokens=64``.

        Raises:
            ImageError: a picture is missing, damaged or too large.
            PromptError: the messages are not sound, or too long (ContextOverflowError).
            UsageError: an option is out of its range, or the model is closed.
            DecodeError: llama.cpp or onnxruntime failed.
        """
        *_, last = self.stream(prompt, images, options, **changes)
        assert last.answer is not None  # noqa: S101 (so it is in the last chunk)
        return last.answer

    def stream(
        self,
        prompt: str | Sequence[Message] | Question,
        images: Sequence[PictureSource] = (),
        options: AnswerOptions | None = None,
        **changes: Any,
    ) -> Generator[Chunk, None, None]:
        """The same answer in chunks, as it is written; the last chunk has the whole answer.

        Closing the iterator ends the answer. Errors are those of ``generate``; all but UsageError are raised
        at the first chunk.
        """
        if not isinstance(prompt, Question):
            prompt = Question(prompt, images, changed(options or AnswerOptions(), changes))
        elif images or options is not None or changes:
            raise UsageError("a Question has its pictures and options already: give it alone.")
        chunks = self._answer(prompt)
        self._streams.add(chunks)
        return chunks

    def batch(self, questions: Iterable[Question]) -> Generator[Outcome, None, None]:
        """Answers to many questions, each as it is done; a question is taken when there is a place for it.

        Closing the iterator ends what is being written. An error of one question is its outcome; the errors
        that are raised are those that end all: UsageError, when the model is closed, and BundleError.
        """
        with self._stepwise() as stepwise:
            yield from answer_all(stepwise, questions)

    def abatch(self, questions: Questions) -> AsyncGenerator[Outcome, None]:
        """The same for asyncio: ``async for outcome in model.abatch(questions)``; questions may come so, too.

        A thread of its own computes, also while an outcome is looked at; it waits when as many outcomes as
        ``n_parallel`` have not been taken. Cancelling the task, and closing the iterator, ends what is being
        written and the thread; in a loop that is left early, ``contextlib.aclosing`` closes it at once.
        """
        return answer_all_async(self._stepwise, questions, n_untaken=len(self._decoders))

    def likelihoods(self, question: Question | str, texts: Sequence[str]) -> tuple[Likelihood, ...]:
        """How probable each of ``texts`` is as the beginning of the answer; the question is read once.

        A text is taken as it is: after a template that ends in a line, one in a sentence begins with a space.

        Raises:
            PromptError: a text is empty; or what ``generate`` raises.
        """
        if isinstance(question, str):
            question = Question(question)
        with self._turnstile.turn():
            self._check_open()
            return LikelihoodReader(self._prompts, self._encoder, self._decoder).read(question, texts)

    @contextmanager
    def scheduler(
        self, *, n_waiting: int, encode_ahead: bool | None = None, interleave: bool = False
    ) -> Iterator[Scheduler]:
        """What answers ``n_parallel`` questions at a time, step by step; the model's turn is its thread's.

        Args:
            n_waiting: questions at most that wait for a place.
            encode_ahead: encode pictures beside the decoder; by default where layers of it are on a GPU.
            interleave: write on while a question is read.

        Raises:
            UsageError: the model is closed, or this thread has a turn already.
        """
        with self._turnstile.turn():
            self._check_open()
            with Scheduler(
                prompts=self._prompts,
                spelling=self._spelling,
                encoder=self._encoder,
                decoders=self._decoders,
                cache=self._cache,
                n_waiting=n_waiting,
                encode_ahead=self.settings.n_gpu_layers != 0 if encode_ahead is None else encode_ahead,
                interleave=interleave,
            ) as scheduler:
                yield scheduler

    def prepare_image(self, source: PictureSource) -> Picture:
        """A picture, opened and checked once: it may be given in the place of ``source`` in many prompts.

        Raises:
            PromptError: the bundle has no vision tower.
            ImageError: the picture is missing, damaged or too large; or no image embeds of this model.
        """
        return self._encoder.prepare(source)

    def as_seen(self, picture: Picture) -> Image.Image:
        """What the model sees of a picture that ``prepare_image`` gave, RGB; its tiles beside one another.

        Raises:
            ImageError: it was given as image embeds.
        """
        return self._encoder.as_seen(picture)

    def cancel(self) -> None:
        """End the answer that is being written, if there is one; any thread may, and a signal handler.

        Its last chunk has the finish_reason "cancelled" and the text so far.
        """
        self._writer.cancel()

    def close(self) -> None:
        """Free the model, after the answer that is being written; a second call does nothing."""
        if self._turnstile.is_mine():
            for stream in tuple(self._streams):
                if getgeneratorstate(stream) == GEN_SUSPENDED:  # others have no turn
                    stream.close()
        with self._turnstile.turn():
            self._closed = True
            self._decoder.context.close()
            self._decoder.context.model.close()
            self._encoder.close()
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if self._speculation.draft is not None:
                self._speculation.draft.close()
            if self._cache is not None:
                self._cache.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this AceStep is closed: make a new one.")

    def _begin_with(self, first: Question | None) -> None:
        """Open the pictures of the first question, and load the tower beside or before the decoder."""
        if first is None:
            return
        if self.settings.staged:
            self._encoder.encode_ahead(first.pictures, self._report)
            self._report(Progress("loading"))
        else:  # loading keeps one thread busy, be it of tower or decoder
            self._encoder.load_beside(first.pictures)

    def _load_decoders(self, files: BundleModel, reader: "PromptReader | None") -> list[Decoder]:
        """A decoder for each sequence of the context."""
        model = files.decoder(self.settings.quant)
        check_vocabulary(model.header, self.bundle.prompt, self.bundle.image)
        path = check_file(files.folder, self.bundle.decoder(self.settings.quant))
        loading, params = self.settings.model_params(), self.settings.context_params()
        states = None
        if self._cache is not None and self.settings.keep_states:
            facts = decoder_facts(path, loading, params, has_int8_layers=reader is not None)
            states = KVStates(self._cache, facts)
        context = Context(Model(path, loading), params)
        return [
            Decoder(context, states, sequence=number, reader=reader) for number in range(params.n_seq_max)
        ]

    def _load_int8_layers(self, files: BundleModel) -> "PromptReader | None":
        record = self.bundle.prefill
        if self.settings.int8_layers is None or record is None:
            return None
        from acestep_gguf.prefill.prompt_reader import PromptReader  # noqa: PLC0415 (it loads onnxruntime)

        return PromptReader.open(
            files.folder,
            record,
            files.decoder(self.settings.quant),
            n_threads=self.settings.n_threads_batch,
            is_streamed=self.settings.int8_layers == "streamed",
        )

    def _load_draft(self, draft: Draft | None, options: EngineOptions) -> DraftModel | None:
        if draft is None or self.plan.draft is None:
            return None
        return DraftModel(
            draft,
            self.plan.draft,
            image_tokens=options.image_tokens,
            max_tiles=options.max_tiles,
            cache=self._cache,
            opening_limit=self.plan.opening_limit,
        )

    @contextmanager
    def _stepwise(self) -> Iterator[Stepwise]:
        if len(self._decoders) > 1:
            with self.scheduler(n_waiting=ENCODED_AHEAD) as scheduler:
                yield scheduler
        else:
            self._check_open()
            yield OneAtATime(self.stream, self.cancel)

    def _answer(self, question: Question) -> Generator[Chunk, None, None]:
        with self._turnstile.turn():
            self._check_open()
            with closing(self._writer.chunks(question)) as chunks:
                for chunk in chunks:
                    if chunk.answer is None:
                        yield chunk
                        self._turnstile.take_over()  # another thread may go on
        yield chunk  # the next answer may be asked for from here


def _cache(where: bool | str | os.PathLike[str]) -> DiskCache | None:
    if isinstance(where, bool):
        return DiskCache(default_folder()) if where else None
    return DiskCache(Path(where))


def _folder(bundle: str | os.PathLike[str]) -> Path:
    try:
        return Path(bundle)
    except TypeError as error:
        raise UsageError(
            f"the bundle is given as {type(bundle).__name__}: give the path of a folder."
        ) from error
