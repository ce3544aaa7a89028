"""Reading a prompt (prefill) and writing an answer (decode) over one llama.cpp context.

Nothing is computed twice: a prompt goes on from where it differs from all that was read and written before,
or from what an earlier process left on disk after the same picture.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from acestep_gguf.decoding.kv_states import KVStates
from acestep_gguf.errors import ContextOverflowError, DecodeError
from acestep_gguf.llama.backend import Interrupted
from acestep_gguf.llama.binding import Context
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.prompt.segments import (
    Content,
    FloatArray,
    ImageInput,
    Position,
    Segment,
    call_ends,
    positions_of,
    row_of,
)

if TYPE_CHECKING:  # it loads onnxruntime
    from acestep_gguf.prefill.prompt_reader import PromptReader


class Decoder:
    """A sequence of a context and what has been computed in it: positions 0 to ``n_past`` - 1.

    Args:
        context: of which the sequence is empty.
        states: where what comes before the end of a picture is kept between processes.
        sequence: of those that the context has.
        reader: reads long parts of a prompt in the place of llama.cpp.
    """

    def __init__(
        self,
        context: Context,
        states: KVStates | None = None,
        *,
        sequence: int = 0,
        reader: "PromptReader | None" = None,
    ) -> None:
        self.context = context
        self.sequence = sequence
        self._states = states
        self._reader = reader
        self._past: list[Position] = []
        # Where calls of llama.cpp ended that were cut as they are when a prompt is read from its start. Who
        # goes on from there gets the same numbers to the bit. Another cut would change them a little, since
        # llama.cpp adds up in another order for another number of positions.
        self._exact_ends: list[int] = []

    @property
    def n_past(self) -> int:
        return len(self._past)

    @property
    def n_ctx(self) -> int:
        """Positions that the context holds at most."""
        return self.context.params.n_ctx

    def check_fits(self, n_prompt: int) -> None:
        """Refuse a prompt of ``n_prompt`` tokens that leaves no room for an answer.

        Raises:
            ContextOverflowError: it does not.
        """
        if n_prompt >= self.n_ctx:
            most = self.context.model.n_ctx_train
            larger = f", or raise n_ctx, up to {most}" if self.n_ctx < most else ""
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens, the context holds {self.n_ctx}: "
                f"ask with fewer pictures or words{larger}.",
                settings=["n_ctx"],
            )

    def reset(self) -> None:
        self.cut(0)

    def cut(self, n_past: int) -> None:
        """Forget everything from position ``n_past`` on."""
        self.context.keep(n_past, sequence=self.sequence)
        del self._past[n_past:]
        del self._exact_ends[bisect_right(self._exact_ends, n_past) :]

    def reuse(self, prompt: Sequence[Segment], *, exact: bool = True) -> int:
        """Keep the beginning of ``prompt`` that is computed already, and forget the rest.

        What is kept ends inside no picture, and before the last position, which has to give logits.

        Args:
            prompt: what ``prefill`` will read.
            exact: keep only as much as leaves all numbers the same to the bit, whatever was read before;
                otherwise all that is the same.

        Returns:
            how many positions were kept.
        """
        n_kept = self.n_reusable(prompt, exact=exact)
        if n_kept < self.n_past:
            self.cut(n_kept)
        if self._states is not None:
            self._restore_more(prompt, positions_of(prompt), self._states)
        return self.n_past

    def n_reusable(self, prompt: Sequence[Segment], *, exact: bool = True) -> int:
        """How many positions of ``prompt`` are computed already, and would be kept by ``reuse``."""
        positions = positions_of(prompt)
        n_kept = min(_n_common(self._past, positions), len(positions) - 1)
        if exact:
            ends = set(call_ends(prompt, self.context.n_batch)).intersection(self._exact_ends)
            n_kept = max((end for end in ends if end <= n_kept and not row_of(positions[end])), default=0)
        return n_kept - row_of(positions[n_kept])

    def copy_of(self, other: "Decoder") -> None:
        """Forget everything, and take over what ``other``, of the same context, has computed."""
        self.context.copy(other.sequence, self.sequence)
        self._past, self._exact_ends = [*other._past], [*other._exact_ends]

    def _restore_more(self, prompt: Sequence[Segment], positions: list[Position], states: KVStates) -> None:
        """Take what is on disk, if it reaches further than what is in memory."""
        for n_segments, end in reversed(list(_image_ends(prompt))):
            if end <= self.n_past:
                return
            if end < len(positions) and (state := states.load(prompt[:n_segments])) is not None:
                self.reset()
                if self.context.restore(state, end, sequence=self.sequence):
                    self._past = positions[:end]
                    self._exact_ends = [e for e in call_ends(prompt, self.context.n_batch) if e <= end]
                    return

    def prefill(self, prompt: Sequence[Segment], embeds: Mapping[bytes, FloatArray] | None = None) -> None:
        """Compute ``prompt`` from ``n_past`` on; its last position gives logits.

        Args:
            prompt: begins with what is computed (see ``reuse``).
            embeds: of the pictures that are not, float32 [n_tokens, n_embd], by their keys. Without them, the
                text before the first such picture is all that is computed.

        Raises:
            ContextOverflowError: it does not fit.
            Interrupted: the context's StopFlag; what is computed stays usable.
            DecodeError: llama.cpp failed; nothing is computed any more.
        """
        for _ in self.prefill_calls(prompt, embeds):
            pass

    def prefill_calls(
        self, prompt: Sequence[Segment], embeds: Mapping[bytes, FloatArray] | None = None
    ) -> Iterator[None]:
        """The same, a call of up to ``n_batch`` positions, or a layer of one, at each step of the iterator.

        Between the steps, other sequences may go on.
        """
        positions = positions_of(prompt)
        self.check_fits(len(positions))
        if self._past != positions[: self.n_past]:
            raise DecodeError("this prompt begins otherwise than what is computed: call reuse first.")
        n_reused, n_batch = self.n_past, self.context.n_batch
        exact = n_reused == 0 or (n_reused in self._exact_ends and n_reused in call_ends(prompt, n_batch))
        last_image = max((end for _, end in _image_ends(prompt)), default=0)
        start = 0
        for n_segments, segment in enumerate(prompt, 1):
            if self.n_past >= start + len(segment):
                start += len(segment)
                continue
            contents: Iterable[Content] = (segment,) if isinstance(segment, tuple) else ()
            if isinstance(segment, ImageInput):
                if embeds is None:
                    return
                contents = segment.contents(embeds[segment.key])
            for content in contents:
                while self.n_past < start + len(content):
                    first, end = self.n_past, min(self.n_past + n_batch, start + len(content))
                    part, n_outputs = content[first - start : end - start], int(end == len(positions))
                    yield from self._read(positions[first:end], part, n_outputs=n_outputs)
                    # Inside of a longer prompt, the reader would read the last position of this call, too.
                    exact = exact and not (n_outputs and self._reader_of(end - first - n_outputs))
                    if exact:
                        self._exact_ends.append(end)
                    if end == last_image and exact and self._states is not None:
                        self._states.take(self.context, prompt[:n_segments], sequence=self.sequence)
                    yield
                start += len(content)

    def append(self, tokens: Sequence[int], *, n_outputs: int = 1) -> None:
        """Compute ``tokens`` from ``n_past`` on; the last ``n_outputs`` of them give logits.

        Raises:
            Interrupted: the context's StopFlag; what was computed before stays usable.
            DecodeError: llama.cpp failed; nothing is computed any more.
        """
        self._compute(tokens, tokens, n_outputs=n_outputs)

    def tokens(self, sampler: Sampler) -> Iterator[int]:
        """Tokens of the answer as they are chosen, until the context is full; each is computed when the next
        one is asked for.

        Raises:
            Interrupted: the context's StopFlag.
            DecodeError: llama.cpp failed.
        """
        while True:
            token = sampler.sample(self.context)
            yield token
            if self.n_past == self.n_ctx:
                return
            self.append([token])

    def _read(self, positions: Sequence[Position], content: Content, *, n_outputs: int) -> Iterator[None]:
        """Compute a call of a prompt: by ``reader`` if it is long, all but what gives logits."""
        n_read = len(positions) - n_outputs
        if (reader := self._reader_of(n_read)) is not None:
            read, positions = positions[:n_read], positions[n_read:]
            first, content = content[:n_read], content[n_read:]
            with self._computing(read):
                yield from reader.read(self.context, first, sequence=self.sequence)
        if positions:
            self._compute(positions, content, n_outputs=n_outputs)

    def _reader_of(self, n: int) -> "PromptReader | None":
        """What reads a call of ``n`` positions in the place of llama.cpp, if it is long."""
        return self._reader if self._reader is not None and self._reader.takes(n) else None

    def _compute(self, positions: Sequence[Position], content: Content, *, n_outputs: int) -> None:
        with self._computing(positions):
            if isinstance(content, np.ndarray):
                self.context.decode_embeds(content, self.n_past, n_outputs=n_outputs, sequence=self.sequence)
            else:
                self.context.decode_tokens(content, self.n_past, n_outputs=n_outputs, sequence=self.sequence)

    @contextmanager
    def _computing(self, positions: Sequence[Position]) -> Iterator[None]:
        """Know what is computed after ``positions`` were, and after it did not come to that."""
        try:
            yield
        except Interrupted:
            self.cut(self.n_past - row_of(positions[0]))
            raise
        except DecodeError:
            self.reset()
            raise
        self._past += positions


def append_each(decoders: Sequence[Decoder], tokens: Sequence[int]) -> None:
    """Compute the next token of each of several sequences of one context in one call; all give logits.

    The output of the i-th decoder is number i - n of ``n``.

    Raises:
        Interrupted: the context's StopFlag; what was computed before stays usable.
        DecodeError: llama.cpp failed; nothing of these sequences is computed any more.
    """
    positions = [decoder.n_past for decoder in decoders]
    try:
        decoders[0].context.decode_each(tokens, positions, [decoder.sequence for decoder in decoders])
    except Interrupted:
        for decoder in decoders:
            decoder.cut(decoder.n_past)
        raise
    except DecodeError:
        for decoder in decoders:
            decoder.reset()
        raise
    for decoder, token in zip(decoders, tokens, strict=True):
        decoder._past.append(token)


def _n_common(one: Sequence[Position], other: Sequence[Position]) -> int:
    """Length of their common beginning."""
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other))


def _image_ends(prompt: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    """For each picture: how many segments there are up to it, and where it ends."""
    ends = accumulate(map(len, prompt))
    for n_segments, (segment, end) in enumerate(zip(prompt, ends, strict=True), 1):
        if isinstance(segment, ImageInput):
            yield n_segments, end
