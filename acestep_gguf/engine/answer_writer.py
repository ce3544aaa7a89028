"""From a question to the chunks of its answer: build the prompt, encode pictures, prefill, decode."""

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from acestep_gguf.answer import Answer, Chunk, FinishReason, Timings, Usage
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.speculation import Speculation
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.turns import Stopwatch
from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.backend import Interrupted, StopFlag
from acestep_gguf.llama.sampler import PENALTY_LAST_N, Sampler
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.segments import Segment, segments_after
from acestep_gguf.prompt.text_stream import TextStream
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.encoder import ImageEncoder, Picture

if TYPE_CHECKING:
    from acestep_gguf.grammar.matcher import Matcher, Vocabulary

FloatArray = npt.NDArray[np.float32]


class AnswerWriter:
    """Writes one answer at a time.

    Args:
        spec: how messages become tokens.
        encoder: of pictures.
        decoder: what it has read and written is reused.
        speculation: how it guesses ahead.
        cache: of what is kept on disk, told when to write.
        loading: time spent loading, which the next answer reports.
    """

    def __init__(
        self,
        *,
        spec: PromptSpec,
        encoder: ImageEncoder,
        decoder: Decoder,
        speculation: Speculation,
        cache: DiskCache | None,
        loading: Stopwatch,
    ) -> None:
        self._model = decoder.context.model
        self._encoder = encoder
        self._decoder = decoder
        self._speculation = speculation
        self._cache = cache
        self._loading = loading
        self._strip_space = spec.space_prefix != "never"
        self._prompts = PromptBuilder(spec, self._model.tokenize, self._model.token_bytes)
        self._stop_tokens = frozenset(spec.control_tokens[token] for token in spec.stop_tokens)
        self._stop_flag = StopFlag()

    def cancel(self) -> None:
        """End the answer that is being written; any thread may, and a signal handler."""
        self._stop_flag.set()
        self._encoder.stop()

    def chunks(self, question: Question) -> Generator[Chunk, None, None]:
        """The answer as it is written; the last chunk has the whole of it, and no text."""
        prompt = self._prompts.build(*question.as_messages())
        n_image_tokens = self._encoder.n_tokens * len(prompt.images)
        n_prompt = len(prompt.text_tokens) + n_image_tokens
        self._decoder.check_fits(n_prompt)
        options = question.options
        text = TextStream(options.stop, strip_space=self._strip_space)
        encoding, prefilling, decoding = Stopwatch(), Stopwatch(), Stopwatch()
        n_cached, tokens = 0, list[int]()
        finish_reason: FinishReason = "cancelled"
        self._stop_flag = StopFlag()
        self._decoder.context.watch(self._stop_flag)
        try:
            with encoding:
                pictures = [self._encoder.prepare(image) for image in prompt.images]
            segments = prompt.segments([picture.input for picture in pictures])
            with prefilling:
                n_cached = self._decoder.reuse(segments, exact=options.exact)
                self._decoder.prefill(segments)  # the tower may still be loading
            embeds = self._encode(segments, pictures, encoding)
            with prefilling:
                self._decoder.prefill(segments, embeds)
            with Sampler(self._model, options, self._matcher(options)) as sampler:
                sampler.accept(prompt.text_tokens[-PENALTY_LAST_N:])
                chosen = self._speculation.tokens(
                    self._decoder,
                    sampler,
                    prompt,
                    segments,
                    self._stop_flag,
                    reading_s=encoding.seconds + prefilling.seconds * n_prompt / (n_prompt - n_cached),
                )
                finish_reason = yield from self._write(chosen, tokens, text, options.max_tokens, decoding)
        except Interrupted:
            pass
        finally:
            self._keep_on_disk()
        answer = Answer(
            text=text.so_far,
            tokens=tuple(tokens),
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=n_prompt,
                image_tokens=n_image_tokens,
                cached_tokens=n_cached,
                completion_tokens=len(tokens),
                drafted_tokens=self._speculation.pace.n_drafted,
                accepted_tokens=self._speculation.pace.n_accepted,
            ),
            timings=Timings(
                load_s=self._loading.take(),
                image_s=encoding.take(),
                prefill_s=prefilling.take(),
                decode_s=decoding.take(),
                prefill_tokens=min(self._decoder.n_past, n_prompt) - n_cached,
                decode_tokens=max(self._decoder.n_past - n_prompt, 0),
            ),
        )
        yield Chunk(text="", answer=answer)

    def _matcher(self, options: AnswerOptions) -> "Matcher | None":
        """What follows the answer's grammar, if it has one."""
        if options.constraint is None:
            return None
        from acestep_gguf.grammar.matcher import Matcher  # noqa: PLC0415 (most answers need none)

        return Matcher(self._vocabulary, options.constraint)

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        from acestep_gguf.grammar.matcher import Vocabulary  # noqa: PLC0415 (as above)

        tokens = [self._model.token_bytes(token) for token in range(self._model.n_vocab)]
        return Vocabulary(tokens, sorted(self._stop_tokens), self._model.tokenize)

    def _encode(
        self, segments: Sequence[Segment], pictures: Sequence[Picture], encoding: Stopwatch
    ) -> dict[bytes, FloatArray]:
        """Embeds, by their keys, of the pictures that the decoder has not read yet."""
        unread = set(segments_after(segments, self._decoder.n_past))
        pictures = [picture for picture in pictures if picture.input in unread]
        with encoding:
            unknown = [picture for picture in pictures if self._encoder.recall(picture) is None]
        if unknown:
            with self._loading:
                self._encoder.load()
        embeds = {}
        for picture in pictures:
            self._stop_flag.check()
            try:
                with encoding:
                    embeds[picture.input.key] = self._encoder.rows(picture)
            except DecodeError:
                self._stop_flag.check()  # it may be what made the tower fail
                raise
        return embeds

    def _write(
        self,
        chosen: Iterator[int],
        tokens: list[int],
        text: TextStream,
        max_tokens: int,
        decoding: Stopwatch,
    ) -> Generator[Chunk, None, FinishReason]:
        """Chunks of the answer, whose tokens are added to ``tokens``; returns why it ended."""
        finish_reason: FinishReason = "length"
        while len(tokens) < max_tokens and finish_reason == "length":
            try:
                with decoding:
                    token = next(chosen, None)
            except Interrupted:
                finish_reason = "cancelled"
                break
            if token is None:
                break
            if token in self._stop_tokens:
                finish_reason = "stop"
                break
            tokens.append(token)
            if piece := text.feed(self._model.token_bytes(token)):
                yield Chunk(text=piece)
            if text.stopped:
                finish_reason = "stop"
            self._keep_on_disk()  # not before the first token is out
        if piece := text.finish():
            yield Chunk(text=piece)
        return finish_reason

    def _keep_on_disk(self) -> None:
        if self._cache is not None:
            self._cache.write()
