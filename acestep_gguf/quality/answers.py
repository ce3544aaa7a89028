"""One decoder of a bundle that answers questions, and that says what it thinks of others' answers."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ModelParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.prompt.builder import ImageSpan, PromptBuilder
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.prompt.segments import ImageInput, image_input
from acestep_gguf.prompt.text_stream import TextStream
from acestep_gguf.vision.image import crops_of, open_rgb
from acestep_gguf.vision.tiling import tiling_of
from acestep_gguf.vision.tower import VisionTower

Floats = npt.NDArray[np.float32]

MAX_N_CTX: Final = 8192
GREEDY: Final = SamplingParams()


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A picture and what a tower made of it; ``embeds`` is float32 [n_image_tokens, n_embd].

    ``marks`` are token ids before, between and behind its tiles, all of as many rows, if there are such.
    """

    path: Path
    embeds: Floats
    marks: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def input(self) -> ImageInput:
        """What it is to a decoder."""
        key = hashlib.sha256(np.ascontiguousarray(self.embeds).data).digest()
        n_blocks = max(1, len(self.marks) - 1)
        return image_input(key, [len(self.embeds) // n_blocks] * n_blocks, self.marks)


@dataclass(frozen=True, slots=True)
class EncodedPictures:
    """What one tower made of pictures, and the seconds that each of them took."""

    shown: Mapping[Path, EncodedPicture]
    seconds: float


def encode_with_tower(
    folder: Path, bundle: Bundle, precision: VisionPrecision, paths: Sequence[Path], *, n_threads: int
) -> EncodedPictures:
    """What the tower of a bundle makes of the pictures at ``paths``; it is freed afterwards.

    Raises:
        PromptError: the bundle has no tower.
        BundleError: it is missing or damaged.
        ImageError: a picture is missing, damaged or too large.
        DecodeError: onnxruntime failed.
    """
    _, image = bundle.tower()
    tower, tiling = VisionTower(folder, bundle, precision, n_threads=n_threads), tiling_of(image)
    seconds = 0.0
    shown = {}
    for path in paths:
        upright = open_rgb(path, image)
        crops = crops_of(upright, tiling)
        started = perf_counter()
        embeds = tower.encode_picture(crops, upright.size, tiling).embeds
        shown[path] = EncodedPicture(path, embeds, tiling.marks(upright.size))
        seconds += perf_counter() - started
    return EncodedPictures(shown, seconds / len(paths))


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """A greedy answer; ``tokens`` with the stop token, if one ended it."""

    tokens: tuple[int, ...]
    text: str
    seconds: float


class Answerer(Protocol):
    """Whatever answers questions about pictures, one question at a time."""

    def write(self, question: str, shown: EncodedPicture) -> GreedyAnswer:
        """The greedy answer."""

    def logits(self, question: str, shown: EncodedPicture, tokens: Sequence[int]) -> Floats:
        """What it expects in the place of each of ``tokens``, an answer: float32 [len(tokens), n_vocab]."""


class BundleAnswerer:
    """A decoder of a bundle, loaded; a context that frees it.

    ``path`` is another file of the same decoder, to be asked in the place of the bundle's; ``n_threads`` are
    by default what suits the machine.

    Raises:
        BundleError: it is missing or damaged.
        DecodeError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        ftype: str,
        *,
        max_tokens: int,
        path: Path | None = None,
        n_threads: int | None = None,
    ) -> None:
        record = bundle.decoder(ftype)
        path = path or check_file(folder, record)
        header = read_gguf_header(path)
        info = decoder_info(header)
        check_vocabulary(header, bundle.prompt, bundle.image)
        self._max_tokens = max_tokens
        self._strip_space = bundle.prompt.space_prefix != "never"
        control = bundle.prompt.control_tokens
        self._stop_ids = frozenset(control[token] for token in bundle.prompt.stop_tokens)
        self._stack = ExitStack()
        settings, _ = machine_settings(bundle, record, pictures=True)
        loading = ModelParams(use_extra_bufts=settings.use_extra_bufts)
        self._model = self._stack.enter_context(Model(path, loading))
        params = settings.context_params(n_ctx=min(info.context_length, MAX_N_CTX), n_outputs_max=max_tokens)
        if n_threads is not None:
            params = replace(params, n_threads=n_threads, n_threads_batch=n_threads)
        self._context = self._stack.enter_context(Context(self._model, params))
        self._decoder = Decoder(self._context)
        self._prompts = PromptBuilder(bundle.prompt, self._model.tokenize, self._model.token_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, question: str, shown: EncodedPicture) -> GreedyAnswer:
        """The greedy answer, of ``max_tokens`` at most.

        Raises:
            ContextOverflowError: the question is too long.
            DecodeError: llama.cpp failed.
        """
        self._decoder.reset()  # so that the seconds are those of a question by itself
        started = perf_counter()
        self._prefill(question, shown)
        text = TextStream(strip_space=self._strip_space)
        tokens: list[int] = []
        with Sampler(self._model, GREEDY) as sampler:
            for token in self._decoder.tokens(sampler):
                tokens.append(token)
                if token in self._stop_ids:
                    break
                text.feed(self._model.token_bytes(token))
                if len(tokens) == self._max_tokens:
                    break
        text.finish()
        return GreedyAnswer(tuple(tokens), text.so_far, perf_counter() - started)

    def logits(self, question: str, shown: EncodedPicture, tokens: Sequence[int]) -> Floats:
        """What it expects in the place of each of ``tokens``, an answer: float32 [len(tokens), n_vocab].

        Raises:
            ContextOverflowError: question and answer are too long.
            DecodeError: llama.cpp failed.
        """
        self._prefill(question, shown)
        rows = [self._context.logits()]
        given = tokens[:-1]
        for start in range(0, len(given), self._context.n_batch):
            part = given[start : start + self._context.n_batch]
            self._decoder.check_fits(self._decoder.n_past + len(part))
            self._decoder.append(part, n_outputs=len(part))
            rows += [self._context.logits(index) for index in range(-len(part), 0)]
        return np.stack(rows)

    def _prefill(self, question: str, shown: EncodedPicture) -> None:
        prompt = self._prompts.build([user_message(question, [shown.path])])
        segments = [shown.input if isinstance(span, ImageSpan) else span.tokens for span in prompt.spans]
        self._decoder.reuse(segments, exact=True)
        self._decoder.prefill(segments, {shown.input.key: shown.embeds})
