"""The Python API: ``AceStep(bundle).generate("What is this?", images=["photo.jpg"])``."""

import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from inspect import GEN_SUSPENDED, getgeneratorstate
from pathlib import Path
from typing import Final, Self

from acestep_gguf.answer import Answer, Chunk, FinishReason, Timings, Usage
from acestep_gguf.bundle import Bundle, check_file
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.decoder import Decoder
from acestep_gguf.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.errors import UsageError
from acestep_gguf.gguf_header import read_gguf_header
from acestep_gguf.image import ImageSource
from acestep_gguf.image_encoder import ImageEncoder
from acestep_gguf.llama import PENALTY_LAST_N, Context, Model, Sampler
from acestep_gguf.messages import Message, user_message
from acestep_gguf.params import CacheType, ContextParams, FlashAttention, SamplingParams, check_integer
from acestep_gguf.prompt import ImageSpan, PromptBuilder
from acestep_gguf.text_stream import TextStream
from acestep_gguf.turns import Stopwatch, Turnstile

DEFAULT_N_CTX: Final = 8192


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
        quant: decoder to use, such as "Q5_K_M", in any case; by default the bundle's default.
        n_ctx: tokens that prompt and answer may have together, at most what the model was made for; that is
            the default up to 8192, since memory for all of them is reserved at once.
        n_threads: threads of tower and decoder; by default the CPUs that this process may use.
        n_batch, n_ubatch, n_gpu_layers, type_k, type_v, flash_attn: as in llama.cpp.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: a setting is out of its range.
        DecodeError: llama.cpp cannot load the decoder.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        quant: str | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_gpu_layers: int = 0,
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
        flash_attn: FlashAttention = "auto",
    ) -> None:
        self._turnstile = Turnstile()
        self._streams: weakref.WeakSet[Generator[Chunk, None, None]] = weakref.WeakSet()
        self._closed = False
        self._loading = Stopwatch()
        with self._loading:
            folder = _folder(bundle)
            if quant is not None and not isinstance(quant, str):
                raise UsageError(f"quant is {quant!r}: give the name of a decoder, such as 'Q4_K_M'.")
            self.bundle = Bundle.read(folder)
            path = check_file(folder, self.bundle.decoder(quant))
            header = read_gguf_header(path)
            self.info = decoder_info(header)
            check_vocabulary(header, self.bundle.prompt, self.bundle.image)
            n_threads = n_threads if n_threads is not None else usable_cpus()
            params = ContextParams(
                n_ctx=n_ctx if n_ctx is not None else min(self.info.context_length, DEFAULT_N_CTX),
                n_batch=n_batch,
                n_ubatch=n_ubatch,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                type_k=type_k,
                type_v=type_v,
                flash_attn=flash_attn,
            )
            if params.n_ctx > self.info.context_length:
                most = self.info.context_length
                raise UsageError(
                    f"n_ctx (--ctx-size) is {n_ctx}: this model was made for {most} tokens at most."
                )
            self._encoder = ImageEncoder(folder, self.bundle, n_threads=n_threads)
            self._model = Model(path, n_gpu_layers=n_gpu_layers)
            self._context = Context(self._model, params)
            self._decoder = Decoder(self._context)
            self._prompts = PromptBuilder(self.bundle.prompt, self._model.tokenize)
            control, stop = self.bundle.prompt.control_tokens, self.bundle.prompt.stop_tokens
            self._stop_tokens = frozenset(control[token] for token in stop)

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        repeat_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Answer:
        """The whole answer to ``prompt``.

        Args:
            prompt: a question, or messages (see messages.py).
            images: pictures, each a path, bytes or a PIL image; with messages, for image parts without one.
            max_tokens: length of the answer at most.
            temperature: 0 takes the most probable token each time, so that answers repeat.
            top_k, top_p, min_p, seed, repeat_penalty: as in llama.cpp, see params.SamplingParams.
            stop: strings that end the answer, and are no part of it.

        Raises:
            ImageError: a picture is missing, damaged or too large.
            PromptError: the messages are not sound, or too long (ContextOverflowError).
            UsageError: a setting is out of its range, or the model is closed.
            DecodeError: llama.cpp or onnxruntime failed.
        """
        *_, last = self.stream(
            prompt,
            images,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repeat_penalty=repeat_penalty,
            stop=stop,
        )
        assert last.answer is not None  # noqa: S101 (so it is in the last chunk)
        return last.answer

    def stream(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        repeat_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[Chunk]:
        """The same answer in chunks, as it is written; the last chunk has the whole answer.

        Closing the iterator ends the answer. Errors are those of ``generate``; all but UsageError are raised
        at the first chunk.
        """
        check_integer("max_tokens", max_tokens, 1, 2**31 - 1)
        for name, given in (("images", images), ("stop", stop)):
            if not isinstance(given, list | tuple):
                raise UsageError(f"{name} is no list: put even a single one into a list.")
        if not all(isinstance(text, str) for text in stop):
            raise UsageError("stop has something that is no string: give a list of strings.")
        sampling = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repeat_penalty=repeat_penalty,
        )
        if isinstance(prompt, str):
            prompt, images = [user_message(prompt, images)], ()
        chunks = self._answer(prompt, images, sampling, max_tokens, TextStream(stop))
        self._streams.add(chunks)
        return chunks

    def close(self) -> None:
        """Free the model, after the answer that is being written; a second call does nothing."""
        if self._turnstile.is_mine():
            for stream in tuple(self._streams):
                if getgeneratorstate(stream) == GEN_SUSPENDED:  # others have no turn
                    stream.close()
        with self._turnstile.turn():
            self._closed = True
            self._context.close()
            self._model.close()
            self._encoder.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this AceStep is closed: make a new one.")

    def _answer(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource],
        sampling: SamplingParams,
        max_tokens: int,
        text: TextStream,
    ) -> Generator[Chunk, None, None]:
        with self._turnstile.turn():
            self._check_open()
            prompt = self._prompts.build(messages, images)
            image = self.bundle.image
            n_image_tokens = image.n_image_tokens * len(prompt.images) if image else 0
            n_prompt = len(prompt.text_tokens) + n_image_tokens
            self._decoder.check_fits(n_prompt)
            encoding, prefilling, decoding = Stopwatch(), Stopwatch(), Stopwatch()
            with self._loading:
                if prompt.images:
                    self._encoder.load()
            with encoding:
                embeds = [self._encoder.encode(image) for image in prompt.images]
            with prefilling:
                self._decoder.reset()
                self._decoder.prefill(
                    [embeds[s.image] if isinstance(s, ImageSpan) else s.tokens for s in prompt.spans]
                )
            with Sampler(self._model, sampling) as sampler:
                sampler.accept(prompt.text_tokens[-PENALTY_LAST_N:])
                tokens = self._decoder.tokens(sampler)
                finish_reason, n_completion = yield from self._write(tokens, text, max_tokens, decoding)
            answer = Answer(
                text=text.so_far,
                finish_reason=finish_reason,
                usage=Usage(
                    prompt_tokens=n_prompt,
                    image_tokens=n_image_tokens,
                    completion_tokens=n_completion,
                ),
                timings=Timings(
                    load_s=self._loading.take(),
                    image_s=encoding.take(),
                    prefill_s=prefilling.take(),
                    decode_s=decoding.take(),
                    prefill_tokens=n_prompt,
                    decode_tokens=n_completion,
                ),
            )
        yield Chunk(text="", answer=answer)

    def _write(
        self, tokens: Iterator[int], text: TextStream, max_tokens: int, decoding: Stopwatch
    ) -> Generator[Chunk, None, tuple[FinishReason, int]]:
        """Chunks of the answer; returns why it ended and how many tokens it has."""
        n_completion = 0
        finish_reason: FinishReason = "length"
        while n_completion < max_tokens and finish_reason == "length":
            with decoding:
                token = next(tokens, None)
            if token is None:
                break
            if token in self._stop_tokens:
                finish_reason = "stop"
                break
            n_completion += 1
            if piece := text.feed(self._model.token_bytes(token)):
                yield Chunk(text=piece)
                self._turnstile.take_over()  # another thread may go on
            if text.stopped:
                finish_reason = "stop"
        if piece := text.finish():
            yield Chunk(text=piece)
            self._turnstile.take_over()
        return finish_reason, n_completion


def _folder(bundle: str | os.PathLike[str]) -> Path:
    try:
        return Path(bundle)
    except TypeError as error:
        raise UsageError(
            f"the bundle is given as {type(bundle).__name__}: give the path of a folder."
        ) from error
