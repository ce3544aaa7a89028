"""A second, smaller bundle that guesses what the first one will write (llama.cpp's "draft-simple").

It reads the same tokens, so it must have the same vocabulary, but sees pictures through its own tower.
"""

import warnings
from collections.abc import Sequence
from itertools import chain, takewhile
from typing import Self

from acestep_gguf.bundle.schema import check_file
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.errors import ImageError
from acestep_gguf.llama.backend import StopFlag
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SamplingParams
from acestep_gguf.plan.draft import Draft
from acestep_gguf.plan.settings import Settings
from acestep_gguf.prompt.builder import Prompt
from acestep_gguf.prompt.segments import segments_after
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.encoder import ImageEncoder, Picture


class DraftModel:
    """A bundle whose default decoder guesses for another one.

    Args:
        draft: the bundle.
        settings: how it is run. Beyond its ``n_ctx`` tokens of prompt and answer it is silent.
        image_tokens: tokens of a picture at most, as for the decoder that it guesses for; None for all.
        cache: where embeds are kept between processes.
        opening_limit: memory in bytes that opening a picture may take.

    Raises:
        BundleError: a file is missing or damaged.
        DecodeError: llama.cpp cannot load the decoder.
    """

    def __init__(
        self,
        draft: Draft,
        settings: Settings,
        *,
        image_tokens: int | None,
        max_tiles: int | None,
        cache: DiskCache | None,
        opening_limit: int | None = None,
    ) -> None:
        files, bundle = draft.bundle, draft.bundle.bundle
        self._n_common = draft.n_common
        self._encoder = ImageEncoder(
            files.folder,
            bundle,
            n_threads=settings.tower_threads,
            precision=settings.vision,
            image_tokens=image_tokens,
            max_tiles=max_tiles,
            cache=cache,
            opening_limit=opening_limit,
        )
        path = check_file(files.folder, bundle.decoder(settings.quant))
        self._model = Model(path, settings.model_params())
        self._context = Context(self._model, settings.context_params())
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
            self._pictures = self._encoder.prepare_all(images)
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
