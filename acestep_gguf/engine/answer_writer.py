"""From a question to the chunks of its answer: build the prompt, encode pictures, prefill, decode."""

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from acestep_gguf.answer import Chunk
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.speculation import Speculation
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.turns import Stopwatch
from acestep_gguf.engine.writing import Spelling, Writing
from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.backend import Interrupted, StopFlag
from acestep_gguf.llama.sampler import PENALTY_LAST_N, Sampler
from acestep_gguf.progress import Progress, Report
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.segments import Segment, segments_after
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.encoder import ImageEncoder, Picture

FloatArray = npt.NDArray[np.float32]


class AnswerWriter:
    """Writes one answer at a time.

    Args:
        prompts: how messages become tokens.
        spelling: how tokens become an answer.
        encoder: of pictures.
        decoder: what it has read and written is reused.
        speculation: how it guesses ahead.
        cache: of what is kept on disk, told when to write.
        loading: time spent loading, which the next answer reports.
        report: is told of progress up to the first token.
    """

    def __init__(
        self,
        *,
        prompts: PromptBuilder,
        spelling: Spelling,
        encoder: ImageEncoder,
        decoder: Decoder,
        speculation: Speculation,
        cache: DiskCache | None,
        loading: Stopwatch,
        report: Report,
    ) -> None:
        self._model = decoder.context.model
        self._encoder = encoder
        self._decoder = decoder
        self._speculation = speculation
        self._cache = cache
        self._loading = loading
        self._report = report
        self._prompts = prompts
        self._spelling = spelling
        self._stop_flag = StopFlag()

    def cancel(self) -> None:
        """End the answer that is being written; any thread may, and a signal handler."""
        self._stop_flag.set()
        self._encoder.stop()

    def chunks(self, question: Question) -> Generator[Chunk, None, None]:
        """The answer as it is written; the last chunk has the whole of it, and no text."""
        prompt = self._prompts.build_parsed(question.turns)
        self._stop_flag = StopFlag()
        self._decoder.context.watch(self._stop_flag)
        # Before pictures are opened that cannot fit anyway.
        self._decoder.check_fits(len(prompt.text_tokens) + len(prompt.images) * self._encoder.least_tokens)
        with (opening := Stopwatch()):
            pictures = self._encoder.prepare_all(prompt.images)
        inputs = [picture.input for picture in pictures]
        writing = Writing(prompt, inputs, question.options, self._spelling, encoding=opening)
        self._decoder.check_fits(writing.n_prompt)
        try:
            segments = prompt.segments(inputs)
            with writing.prefilling:
                writing.n_cached = self._decoder.reuse(segments, exact=question.options.exact)
            self._read(segments, None, writing)  # the tower may still be loading
            self._read(segments, self._encode(segments, pictures, writing.encoding), writing)
            with Sampler(self._model, question.options, self._spelling.matcher(question.options)) as sampler:
                writing.seed = sampler.seed
                sampler.accept(prompt.text_tokens[-PENALTY_LAST_N:])
                n_new = writing.n_prompt - writing.n_cached
                reading_s = writing.encoding.seconds + writing.prefilling.seconds * writing.n_prompt / n_new
                chosen = self._speculation.tokens(
                    self._decoder, sampler, prompt, segments, self._stop_flag, reading_s=reading_s
                )
                yield from self._write(chosen, writing)
        except Interrupted:
            pass
        finally:
            self._keep_on_disk()
        pace = self._speculation.pace
        answer = writing.answer(
            self._decoder.n_past,
            load_s=self._loading.take(),
            drafted_tokens=pace.n_drafted,
            accepted_tokens=pace.n_accepted,
        )
        yield Chunk(text="", answer=answer)

    def _read(
        self, segments: Sequence[Segment], embeds: dict[bytes, FloatArray] | None, writing: Writing
    ) -> None:
        """Prefill, without embeds only the text before the first picture that needs them."""
        with writing.prefilling:
            n_new = writing.n_prompt - writing.n_cached
            self._report(Progress("reading", self._decoder.n_past - writing.n_cached, n_new))
            for _ in self._decoder.prefill_calls(segments, embeds):
                self._report(Progress("reading", self._decoder.n_past - writing.n_cached, n_new))

    def _encode(
        self, segments: Sequence[Segment], pictures: Sequence[Picture], encoding: Stopwatch
    ) -> dict[bytes, FloatArray]:
        """Embeds, by their keys, of the pictures that the decoder has not read yet."""
        unread = set(segments_after(segments, self._decoder.n_past))
        pictures = [picture for picture in pictures if picture.input in unread]
        with encoding:
            unknown = [picture for picture in pictures if self._encoder.recall(picture) is None]
        if unknown:
            self._report(Progress("loading"))
            with self._loading:
                self._encoder.load()
        embeds = {}
        for number, picture in enumerate(pictures):
            self._stop_flag.check()
            self._report(Progress("encoding", number, len(pictures)))
            try:
                with encoding:
                    embeds[picture.input.key] = self._encoder.rows(picture)
            except DecodeError:
                self._stop_flag.check()  # it may be what made the tower fail
                raise
        return embeds

    def _write(self, chosen: Iterator[int], writing: Writing) -> Generator[Chunk, None, None]:
        """Chunks of the answer until it ends."""
        while writing.finish_reason is None:
            try:
                with writing.decoding:
                    token = next(chosen, None)
            except Interrupted:
                piece = writing.end("cancelled")
            else:
                piece = writing.end("length") if token is None else writing.take(token)
            if piece:
                yield Chunk(text=piece)
            self._keep_on_disk()  # not before the first token is out

    def _keep_on_disk(self) -> None:
        if self._cache is not None:
            self._cache.write()
