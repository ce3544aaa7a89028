"""The Python API: ``AceStep(bundle).generate("What is this?", images=["photo.jpg"])``."""

import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from inspect import GEN_SUSPENDED, getgeneratorstate
from pathlib import Path
from typing import Final, Self

from acestep_gguf.answer import Answer, Chunk
from acestep_gguf.bundle.decoder_info import check_vocabulary
from acestep_gguf.bundle.names import vision_precision_from
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.draft_model import DraftModel
from acestep_gguf.decoding.kv_states import KVStates, decoder_facts
from acestep_gguf.decoding.speculation import DEFAULT_DRAFT_MAX, SpecType, Speculation
from acestep_gguf.engine.answer_writer import AnswerWriter, Question
from acestep_gguf.engine.turns import Stopwatch, Turnstile
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import CacheType, FlashAttention, SamplingParams, check_integer
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import this_machine
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.plan.search import Defaults
from acestep_gguf.plan.settings import Wish
from acestep_gguf.prompt.messages import Message, user_message
from acestep_gguf.storage import disk_cache
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.embeds_file import EmbedsFile
from acestep_gguf.vision.encoder import REMEMBERED, ImageEncoder, Picture, PictureSource

# What a template writes around messages: more than most do, beside two characters of its source a token.
TEMPLATE_TOKENS: Final = 64


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
        vision: precision of the tower, "float32" or "int8"; by default the bundle's default.
        n_ctx: tokens that prompt and answer may have together, at most what the model was made for; that is
            the default up to 8192, since memory for all of them is reserved at once.
        n_threads: threads of tower and decoder.
        n_threads_batch: threads that read the prompt, if not as many.
        use_extra_bufts: repack weights for the CPU while loading (llama.cpp's ``--repack``).
        n_batch, n_ubatch, n_gpu_layers, offload_kqv, type_k, type_v, flash_attn, use_mmap, use_mlock: as in
            llama.cpp.
        allow_paging: run even if weights do not fit into memory and are read from disk again and again.
        pictures: those that the first question is about, if they are known. Where memory has no room for
            tower and decoder together, they are encoded before the decoder is loaded, and the tower is freed.
        n_text: tokens of messages and answers together that there will be at most, beside ``pictures``, if it
            is known: by default, the context is made no larger.
        image_tokens: tokens of a picture at most: those that say most of it are kept. By default all.
        spec_type: "ngram-simple" guesses ahead what followed the last tokens before (see speculation.py).
        draft: folder of a smaller bundle of the same vocabulary, which guesses ahead instead.
        draft_max: tokens to guess at a time at most.
        cache: whether image embeds, and the decoder's state after a picture, are kept on disk for later
            processes, which then answer much faster; or the folder for them. They tell what was in the
            pictures. See docs/cache.md.

    What is None is planned, so that it fits this machine and suits it (see plan/planner.py and
    machine_settings.py); ``plan`` and ``settings_reason`` say what and why.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: a setting is out of its range.
        ImageError, PromptError: one of ``pictures`` is damaged, or the bundle cannot see.
        MemoryShortageError: it cannot fit this machine; the message says what would.
        DecodeError: llama.cpp cannot load the decoder.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        quant: str | None = None,
        vision: str | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        use_extra_bufts: bool | None = None,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_gpu_layers: int | None = None,
        offload_kqv: bool | None = None,
        type_k: CacheType | None = None,
        type_v: CacheType | None = None,
        flash_attn: FlashAttention | None = None,
        use_mmap: bool | None = None,
        use_mlock: bool | None = None,
        allow_paging: bool = False,
        pictures: Sequence[PictureSource] | None = None,
        n_text: int | None = None,
        image_tokens: int | None = None,
        spec_type: SpecType = "none",
        draft: str | os.PathLike[str] | None = None,
        draft_max: int = DEFAULT_DRAFT_MAX,
        cache: bool | str | os.PathLike[str] = False,
    ) -> None:
        self._turnstile = Turnstile()
        self._streams: weakref.WeakSet[Generator[Chunk, None, None]] = weakref.WeakSet()
        self._closed = False
        self._loading = Stopwatch()
        with self._loading:
            folder = _folder(bundle)
            if quant is not None and not isinstance(quant, str):
                raise UsageError(f"quant is {quant!r}: give the name of a decoder, such as 'Q4_K_M'.")
            bundle_model = BundleModel(folder)
            self.bundle = bundle_model.bundle
            precision = None if vision is None else vision_precision_from(vision)
            if precision is not None:
                self.bundle.vision_file(precision)
            tuned, self.settings_reason = machine_settings(
                self.bundle, self.bundle.decoder(quant), pictures=self.bundle.vision is not None
            )
            self._speculation = Speculation(spec_type, draft_max, with_draft=draft is not None)
            self.plan = make_plan(
                bundle_model,
                this_machine(),
                Wish(
                    quant=quant,
                    n_ctx=n_ctx,
                    n_ctx_needed=_n_ctx_needed(pictures, n_text, bundle_model),
                    n_threads=n_threads,
                    n_threads_batch=n_threads_batch if n_threads_batch is not None else n_threads,
                    use_extra_bufts=use_extra_bufts,
                    n_batch=n_batch,
                    n_ubatch=n_ubatch,
                    n_gpu_layers=n_gpu_layers,
                    offload_kqv=offload_kqv,
                    type_k=type_k,
                    type_v=type_v,
                    flash_attn=flash_attn,
                    use_mmap=use_mmap,
                    use_mlock=use_mlock,
                    vision=precision,
                    n_outputs_max=self._speculation.n_outputs_max,
                    images=_n_to_encode(pictures, folder, self.bundle),
                    staged=None if pictures and len(pictures) <= REMEMBERED else False,
                    allow_paging=allow_paging,
                ),
                defaults=Defaults.of(tuned),
            )
            planned = self.plan.settings
            self.settings = tuned.by_hand(
                use_extra_bufts=planned.use_extra_bufts,
                n_threads=planned.n_threads,
                n_threads_batch=planned.n_threads_batch,
                n_ubatch=planned.n_ubatch,
                flash_attn=planned.flash_attn,
                tower_threads=n_threads,
            )
            path = check_file(folder, self.bundle.decoder(planned.quant))
            if image_tokens is not None:
                check_integer("image_tokens", image_tokens, 1, 2**20)
            self._cache = _cache(cache)
            self._encoder = ImageEncoder(
                folder,
                self.bundle,
                n_threads=self.settings.tower_threads,
                precision=precision,
                image_tokens=image_tokens,
                cache=self._cache,
            )
            if planned.staged and pictures:
                self._encoder.encode_ahead(pictures)
            elif pictures:  # loading keeps one thread busy, be it of tower or decoder
                self._encoder.load_beside(pictures)
            header = bundle_model.decoder(planned.quant).header
            self.info = bundle_model.decoder(planned.quant).info
            check_vocabulary(header, self.bundle.prompt, self.bundle.image)
            params = planned.context_params()
            loading = planned.loading(self.info.block_count)
            self._model = Model(path, **loading)
            self._context = Context(self._model, params)
            states = None
            if self._cache is not None:
                states = KVStates(self._cache, decoder_facts(path, params, loading))
            self._decoder = Decoder(self._context, states)
            if draft is not None:
                self._speculation.draft = DraftModel(
                    _folder(draft),
                    header,
                    pictures=self.bundle.vision is not None,
                    n_ctx=params.n_ctx,
                    cache=self._cache,
                )
            self._writer = AnswerWriter(
                spec=self.bundle.prompt,
                encoder=self._encoder,
                decoder=self._decoder,
                speculation=self._speculation,
                cache=self._cache,
                loading=self._loading,
            )

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[PictureSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        repeat_penalty: float = 1.0,
        stop: Sequence[str] = (),
        exact: bool = True,
    ) -> Answer:
        """The whole answer to ``prompt``.

        Args:
            prompt: a question, or messages (see messages.py).
            images: pictures, each a path, bytes, a PIL image, an EmbedsFile or what ``prepare_image`` gave;
                with messages, for image parts without one.
            max_tokens: length of the answer at most.
            temperature: 0 takes the most probable token each time, so that answers repeat.
            top_k, top_p, min_p, seed, repeat_penalty: as in llama.cpp, see params.SamplingParams.
            stop: strings that end the answer, and are no part of it.
            exact: go on from what was computed for earlier answers only where that changes nothing, not even
                the last bit. Otherwise from the longest common beginning, which is faster in a chat: an
                answer can come out otherwise where two tokens are about equally probable.

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
            exact=exact,
        )
        assert last.answer is not None  # noqa: S101 (so it is in the last chunk)
        return last.answer

    def stream(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[PictureSource] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        repeat_penalty: float = 1.0,
        stop: Sequence[str] = (),
        exact: bool = True,
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
        chunks = self._answer(Question(prompt, images, sampling, max_tokens, stop, exact))
        self._streams.add(chunks)
        return chunks

    def prepare_image(self, source: PictureSource) -> Picture:
        """A picture, opened and checked once: it may be given in the place of ``source`` in many prompts.

        Raises:
            PromptError: the bundle has no vision tower.
            ImageError: the picture is missing, damaged or too large; or no image embeds of this model.
        """
        return self._encoder.prepare(source)

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
            self._context.close()
            self._model.close()
            self._encoder.close()
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

    def _answer(self, question: Question) -> Generator[Chunk, None, None]:
        with self._turnstile.turn():
            self._check_open()
            with closing(self._writer.chunks(question)) as chunks:
                for chunk in chunks:
                    if chunk.answer is None:
                        yield chunk
                        self._turnstile.take_over()  # another thread may go on
        yield chunk  # the next answer may be asked for from here


def _n_to_encode(pictures: Sequence[PictureSource] | None, folder: Path, bundle: Bundle) -> int:
    """Pictures to plan the tower for; none where its files were left out, for answers from embeds only."""
    if pictures is not None:
        return sum(not isinstance(picture, EmbedsFile) for picture in pictures)
    return int(bundle.vision is not None and (folder / bundle.vision_file().file).exists())


def _n_ctx_needed(
    pictures: Sequence[PictureSource] | None, n_text: int | None, bundle: BundleModel
) -> int | None:
    if n_text is None:
        return None
    check_integer("n_text", n_text, 1, 2**31 - 1)
    n_template = TEMPLATE_TOKENS + len(bundle.bundle.prompt.chat_template) // 2
    return n_text + n_template + bundle.image_tokens(len(pictures or ()))


def _cache(where: bool | str | os.PathLike[str]) -> DiskCache | None:
    if isinstance(where, bool):
        return DiskCache(disk_cache.default_folder()) if where else None
    if not isinstance(where, str | os.PathLike):
        raise UsageError(f"cache is {where!r}: give True, False or the path of a folder.")
    return DiskCache(Path(where))


def _folder(bundle: str | os.PathLike[str]) -> Path:
    try:
        return Path(bundle)
    except TypeError as error:
        raise UsageError(
            f"the bundle is given as {type(bundle).__name__}: give the path of a folder."
        ) from error
