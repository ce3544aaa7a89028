"""A second, smaller bundle that guesses what the first one will write (llama.cpp's "draft-simple").

It reads the same tokens, so it must have the same vocabulary, but sees pictures through its own tower.
"""

import warnings
from collections.abc import Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Self

from acestep_gguf.bundle.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.bundle.gguf_header import GGUFHeader, StringArray, read_gguf_header
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.errors import ImageError, UsageError
from acestep_gguf.llama.backend import StopFlag
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ModelParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.prompt.builder import Prompt
from acestep_gguf.prompt.segments import segments_after
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.encoder import ImageEncoder, Picture


class DraftModel:
    """A bundle whose default decoder guesses for another one.

    Args:
        folder: the bundle.
        target: header of the decoder that it guesses for.
        pictures: whether there will be pictures to look at.
        n_ctx: tokens that prompt and answer may have; beyond, or beyond what it was made for, it is silent.
        cache: where embeds are kept between processes.

    Raises:
        BundleError: no bundle, or a damaged one.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: it has another vocabulary, or no tower where the other one has one.
        DecodeError: llama.cpp cannot load the decoder.
    """

    def __init__(
        self, folder: Path, target: GGUFHeader, *, pictures: bool, n_ctx: int, cache: DiskCache | None
    ) -> None:
        bundle = Bundle.read(folder)
        if pictures and bundle.vision is None:
            raise UsageError(
                f"{folder} has no vision tower, so it cannot see pictures: choose another draft.",
                settings=["draft"],
            )
        record = bundle.decoder()
        path = check_file(folder, record)
        header = read_gguf_header(path)
        info = decoder_info(header)
        check_vocabulary(header, bundle.prompt, bundle.image)
        self._n_common = _n_common_tokens(header, target)
        settings, _ = machine_settings(bundle, record, pictures=pictures)
        params = settings.context_params(n_ctx=min(n_ctx, info.context_length))
        self._encoder = ImageEncoder(folder, bundle, n_threads=settings.tower_threads, cache=cache)
        self._model = Model(path, ModelParams(use_extra_bufts=settings.use_extra_bufts))
        self._context = Context(self._model, params)
        self._decoder = Decoder(self._context)
        self._sampler = Sampler(self._model, SamplingParams())
        self._prompt = Prompt((), ())
        self._pictures: list[Picture] = []
        self._sees_pictures = True

    def begin(self, prompt: Prompt, stop: StopFlag) -> Self:
        """Take a new prompt, to be read by ``prepare``; ``stop`` ends whatever it does."""
        self._context.watch(stop)
        self._prompt = prompt
        return self

    def prepare(self) -> None:
        """Read the prompt, as far as it is a new one.

        Pictures that were prepared for the target's tower are opened again for this one. Where that cannot
        be, as with embeds of another tower, a UserWarning says so, and nothing is guessed in this answer.
        """
        images = [image.source if isinstance(image, Picture) else image for image in self._prompt.images]
        try:
            self._pictures = [self._encoder.prepare(image) for image in images]
            self._sees_pictures = True
        except ImageError as error:
            self._sees_pictures = False
            message = (
                f"the draft model cannot see the pictures, so it guesses nothing in this answer: {error}"
            )
            warnings.warn(message, stacklevel=2)
        self._read((), n_more=0)

    def draft(self, answer: Sequence[int], n_max: int) -> list[int]:
        """At most ``n_max`` tokens that may follow ``answer``; none if all does not fit its context."""
        if not self._read(answer, n_more=n_max):
            return []
        guesses = [self._sampler.sample(self._context)]
        while len(guesses) < n_max:
            self._decoder.append(guesses[-1:])
            guesses.append(self._sampler.sample(self._context))
        return list(takewhile(lambda token: token < self._n_common, guesses))

    def accuracy(self, answer: Sequence[int]) -> None:
        """None: what it would have guessed is only known once it has guessed."""

    def _read(self, answer: Sequence[int], *, n_more: int) -> bool:
        """Read prompt and ``answer`` as far as they are new; False if they and ``n_more`` do not fit."""
        if not self._sees_pictures:
            return False
        known = self._prompt.segments([picture.input for picture in self._pictures])
        known += [tuple(answer)] if answer else []
        if sum(map(len, known)) + n_more >= self._decoder.n_ctx:
            return False
        if max(chain(self._prompt.text_tokens, answer)) >= self._n_common:
            return False
        self._decoder.reuse(known, exact=False)
        unread = set(segments_after(known, self._decoder.n_past))
        pictures = [picture for picture in self._pictures if picture.input in unread]
        self._decoder.prefill(known, {picture.input.key: self._encoder.rows(picture) for picture in pictures})
        return True

    def close(self) -> None:
        self._sampler.close()
        self._context.close()
        self._model.close()
        self._encoder.close()


def _n_common_tokens(draft: GGUFHeader, target: GGUFHeader) -> int:
    """How many tokens both have; one may have more, which pad its vocabulary to a round number."""
    texts = [_tokens(header) for header in (draft, target)]
    n_common = min(map(len, texts))
    if texts[0][:n_common] != texts[1][:n_common]:
        raise UsageError(
            f"{draft.path} has another vocabulary than {target.path}: choose another draft.",
            settings=["draft"],
        )
    return n_common


def _tokens(header: GGUFHeader) -> list[bytes]:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)  # noqa: S101 (decoder_info checked it)
    return tokens.read()
