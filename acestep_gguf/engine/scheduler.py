"""Several answers at a time in one context: questions come in, chunks go out, a free place is taken at once.

Each answer has a sequence of its own. A question is read by itself, in the calls in which it is read for one
answer at a time, so that its numbers are the same to the bit; then all answers go on by a token each in one
call, which takes little longer than a call for one of them. What a prompt has in common with an earlier one
is not read again.
Where the decoder leaves the CPU alone, the tower encodes the pictures of the next questions meanwhile.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.answer import Chunk, FinishReason
from acestep_gguf.decoding.decoder import Decoder, append_each
from acestep_gguf.engine.logprobs import Logprobs
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.turns import Stopwatch
from acestep_gguf.engine.writing import Spelling, Writing
from acestep_gguf.errors import AceStepError, DecodeError, QueueFullError
from acestep_gguf.llama.backend import StopFlag
from acestep_gguf.llama.sampler import PENALTY_LAST_N, Sampler
from acestep_gguf.prompt.builder import Prompt, PromptBuilder
from acestep_gguf.prompt.segments import Segment
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.encoder import ImageEncoder

if TYPE_CHECKING:
    from acestep_gguf.grammar.matcher import Matcher

FloatArray = npt.NDArray[np.float32]

ENCODED_AHEAD: Final = 2  # questions whose pictures are encoded before there is a place for them
COPIED_TOKENS: Final = 32  # to read fewer takes no longer than to copy a sequence


@dataclass(eq=False)
class Request:
    """A question that was submitted, and what has become of it so far."""

    question: Question
    n_logprobs: int | None = None  # how many tokens to name beside each; None: not even its own probability
    is_cancelled: bool = False
    prepared: Future["_Prepared"] | None = None


# What came of a request in one step; the last of its events is an error, or a chunk with the whole answer.
Event = tuple[Request, Chunk | AceStepError]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A prompt and the image embeds that it needs, by their keys, float32 [n_tokens, n_embd]."""

    prompt: Prompt
    segments: Sequence[Segment]
    embeds: dict[bytes, FloatArray]
    writing: Writing


@dataclass(frozen=True, eq=False)
class _Reading:
    """A question that is being read in a sequence of its own; each of ``calls`` computes a part of it."""

    request: Request
    decoder: Decoder
    prepared: _Prepared
    matcher: "Matcher | None"
    calls: Iterator[None]


@dataclass(frozen=True, eq=False)
class _Running:
    """An answer that is being written, in a sequence of its own."""

    request: Request
    decoder: Decoder
    writing: Writing
    sampler: Sampler


class Scheduler:
    """Answers requests in the order in which they were submitted, as many together as there are sequences.

    All methods but ``cancel`` and ``stop`` are called by one thread at a time.

    Args:
        prompts: how messages become tokens.
        spelling: how tokens become an answer.
        encoder: of pictures.
        decoders: of the sequences of one context; what they have read and written is reused.
        cache: of what is kept on disk, told when to write.
        n_waiting: requests at most that wait for a place.
        encode_ahead: encode pictures of those that wait in a thread beside the decoder. Where both compute on
            the CPU, they are faster one after the other: by a seventh on 2 cores (docs/batch.md).
        interleave: between the calls that read a question, write a token of each answer, so that no answer
            halts for longer than a call; otherwise questions are read first, which takes less time in all.
    """

    def __init__(
        self,
        *,
        prompts: PromptBuilder,
        spelling: Spelling,
        encoder: ImageEncoder,
        decoders: Sequence[Decoder],
        cache: DiskCache | None,
        n_waiting: int,
        encode_ahead: bool,
        interleave: bool = False,
    ) -> None:
        self._context = decoders[0].context
        self._check_fits = decoders[0].check_fits
        self._encoder = encoder
        self._cache = cache
        self._n_waiting = n_waiting
        self._n_ahead = ENCODED_AHEAD if encode_ahead else 0
        self._interleave = interleave
        self._waiting: deque[Request] = deque()
        self._free = deque(decoders)  # whose answer ended longest ago comes first
        self._reading: _Reading | None = None
        self._running: list[_Running] = []
        self._has_read = False  # in the last step
        self._prompts = prompts
        self._spelling = spelling
        self._tower_thread = ThreadPoolExecutor(1, thread_name_prefix="vision tower")
        self._stop_flag = StopFlag()
        self._context.watch(self._stop_flag)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_room(self) -> bool:
        """Whether another request may be submitted."""
        return len(self._waiting) < self._n_waiting

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and self._reading is None and not self._running

    def submit(self, question: Question, *, n_logprobs: int | None = None) -> Request:
        """Put a question at the end of the queue.

        Args:
            question: what is asked.
            n_logprobs: give log probabilities of the tokens, and of so many others in the place of each.

        Raises:
            QueueFullError: there is no room for it.
        """
        if not self.has_room:
            raise QueueFullError(f"{len(self._waiting)} questions wait already: ask again later.")
        request = Request(question, n_logprobs)
        self._waiting.append(request)
        self._encode_ahead()
        return request

    def cancel(self, request: Request) -> None:
        """End a request at the next step: its answer so far is its last event. Any thread may."""
        request.is_cancelled = True

    def step(self) -> list[Event]:
        """One call of the decoder: read on, or write one token of each answer; what came of it.

        Raises:
            Interrupted: the scheduler was stopped.
        """
        if events := self._end_cancelled():
            return events
        if self._running and self._has_read and self._interleave:
            self._has_read = False
            return self._write()
        if self._reading is None and self._may_begin() and (refused := self._begin(self._waiting.popleft())):
            return refused
        if self._reading is not None:
            self._has_read = True
            return self._read(self._reading)
        return self._write() if self._running else []

    def stop(self) -> None:
        """End the step that goes on, and all after it, with Interrupted; any thread may."""
        self._stop_flag.set()
        self._encoder.stop()

    def close(self) -> None:
        """End all requests without an event, and leave the sequences to others."""
        self.stop()
        self._tower_thread.shutdown(cancel_futures=True)
        if self._reading is not None:
            self._stop_reading(self._reading)
        for running in [*self._running]:
            self._leave(running)
        self._waiting.clear()

    def _end_cancelled(self) -> list[Event]:
        events: list[Event] = []
        for request in [request for request in self._waiting if request.is_cancelled]:
            self._waiting.remove(request)
            if request.prepared is not None:
                request.prepared.cancel()  # unless it has begun, the tower is spared it
            nothing = Writing(Prompt((), ()), (), request.question.options, self._spelling)
            events.append((request, Chunk(text="", answer=nothing.answer(0))))
        if (reading := self._reading) is not None and reading.request.is_cancelled:
            self._stop_reading(reading)
            answer = reading.prepared.writing.answer(reading.decoder.n_past)
            events.append((reading.request, Chunk(text="", answer=answer)))
        for running in [running for running in self._running if running.request.is_cancelled]:
            events += self._end(running)
        return events

    def _encode_ahead(self) -> None:
        for request in islice(self._waiting, self._n_ahead):
            if request.prepared is None:
                request.prepared = self._tower_thread.submit(self._prepare, request.question)

    def _may_begin(self) -> bool:
        """Whether to turn to the first that waits, rather than to wait for its pictures."""
        if not self._free or not self._waiting:
            return False
        prepared = self._waiting[0].prepared
        return not self._running or prepared is None or prepared.done()

    def _prepare(self, question: Question) -> _Prepared:
        """Build the prompt and encode its pictures."""
        prompt = self._prompts.build_parsed(question.turns)
        # Before pictures are opened that cannot fit anyway.
        self._check_fits(len(prompt.text_tokens) + len(prompt.images) * self._encoder.least_tokens)
        with (opening := Stopwatch()):
            pictures = self._encoder.prepare_all(prompt.images)
        inputs = [picture.input for picture in pictures]
        writing = Writing(prompt, inputs, question.options, self._spelling, encoding=opening)
        self._check_fits(writing.n_prompt)
        with writing.encoding:
            embeds = {picture.input.key: self._encoder.rows(picture) for picture in pictures}
        return _Prepared(prompt, prompt.segments(inputs), embeds, writing)

    def _begin(self, request: Request) -> list[Event]:
        """Give a question a free sequence that is to read it; an event, if that cannot be."""
        prepared, request.prepared = request.prepared, None
        self._encode_ahead()
        options = request.question.options
        try:
            read = self._prepare(request.question) if prepared is None else prepared.result()
            matcher = self._spelling.matcher(options)
            decoder = self._free_decoder(read.segments, exact=options.exact)
            with read.writing.prefilling:
                read.writing.n_cached = decoder.reuse(read.segments, exact=options.exact)
        except AceStepError as error:
            return [(request, error)]
        self._free.remove(decoder)
        calls = decoder.prefill_calls(read.segments, read.embeds)
        self._reading = _Reading(request, decoder, read, matcher, calls)
        return []

    def _read(self, reading: _Reading) -> list[Event]:
        """Go on reading; after the last call, choose the first token of the answer."""
        read = reading.prepared
        try:
            with read.writing.prefilling:
                next(reading.calls, None)
        except AceStepError as error:
            self._stop_reading(reading)
            return [(reading.request, error)]
        if reading.decoder.n_past < read.writing.n_prompt:
            return []
        if self._cache is not None:
            self._cache.write()
        sampler = Sampler(self._context.model, reading.request.question.options, reading.matcher)
        read.writing.seed = sampler.seed
        sampler.accept(read.prompt.text_tokens[-PENALTY_LAST_N:])
        running = _Running(reading.request, reading.decoder, read.writing, sampler)
        self._reading = None
        self._running.append(running)
        return self._take(running, -1)

    def _stop_reading(self, reading: _Reading) -> None:
        self._reading = None
        self._free.append(reading.decoder)

    def _free_decoder(self, segments: Sequence[Segment], *, exact: bool) -> Decoder:
        """The free one that has computed most of the prompt; or a copy of a busy one, if that has more."""
        decoders = (*self._free, *(running.decoder for running in self._running))
        n_reusable = {decoder: decoder.n_reusable(segments, exact=exact) for decoder in decoders}
        free = max(self._free, key=lambda decoder: n_reusable[decoder])
        best = max(decoders, key=lambda decoder: n_reusable[decoder])
        if n_reusable[best] < n_reusable[free] + COPIED_TOKENS:
            return free
        self._free[0].copy_of(best)
        return self._free[0]

    def _write(self) -> list[Event]:
        """One more token of each answer."""
        if full := [running for running in self._running if running.decoder.n_past == running.decoder.n_ctx]:
            return [event for running in full for event in self._end(running, "length")]
        together = [*self._running]
        try:
            with ExitStack() as clocks:
                for running in together:
                    clocks.enter_context(running.writing.decoding)
                append_each(
                    [running.decoder for running in together],
                    [running.writing.tokens[-1] for running in together],
                )
        except DecodeError as error:
            for running in together:
                self._leave(running)
            return [(running.request, error) for running in together]
        return [
            event for i, running in enumerate(together) for event in self._take(running, i - len(together))
        ]

    def _take(self, running: _Running, output: int) -> list[Event]:
        """Choose the next token from an output of the last call, and give out what text it makes certain."""
        ranking = None
        try:
            logits = self._context.logits_view(output)
            if running.request.n_logprobs is not None:
                ranking = Logprobs(logits, running.request.n_logprobs, self._spelling.token_bytes)
            token = running.sampler.sample(self._context, output)
        except DecodeError as error:
            running.decoder.reset()
            self._leave(running)
            return [(running.request, error)]
        n_before = len(running.writing.tokens)
        piece = running.writing.take(token)
        is_written = len(running.writing.tokens) > n_before  # a stop token is not
        logprobs = (ranking.of(token, float(logits[token])),) if ranking and is_written else ()
        events: list[Event] = []
        if piece or logprobs:
            events.append((running.request, Chunk(text=piece, logprobs=logprobs)))
        return events if running.writing.finish_reason is None else events + self._end(running)

    def _end(self, running: _Running, reason: FinishReason = "cancelled") -> list[Event]:
        piece = running.writing.end(reason)
        answer = running.writing.answer(running.decoder.n_past)
        self._leave(running)
        chunks = [Chunk(text=piece)] if piece else []
        return [(running.request, chunk) for chunk in (*chunks, Chunk(text="", answer=answer))]

    def _leave(self, running: _Running) -> None:
        running.sampler.close()
        self._running.remove(running)
        self._free.append(running.decoder)
