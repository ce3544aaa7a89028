"""Guessing ahead: tokens that will probably come next are checked in one call of the decoder.

A call of several tokens costs less than one call each, because the weights are read once. A guess is kept
only if the sampler chooses that very token from the decoder's own logits, so answers stay the decoder's own,
greedy or drawn, but for the noise that calls of another size make in the logits.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat
from operator import mul
from statistics import median
from time import perf_counter
from typing import Final, Protocol

import numpy as np

from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.decoding.draft_model import DraftModel
from acestep_gguf.llama.backend import StopFlag
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import SpecType
from acestep_gguf.prompt.builder import Prompt
from acestep_gguf.prompt.segments import Segment, positions_of

NGRAM_SIZES: Final = (3, 2)  # the longest that was seen before is followed
LEAST_GAIN: Final = 1.03  # tokens a second, relative to plain decoding: less is not worth the noise
REMEMBERED_CALLS: Final = 9
PATIENCE: Final = 1.0  # how many times as long as reading the prompt, before a draft model reads it, too
FIRST_PAUSE: Final = 16  # plain tokens before guessing is tried again; doubled each time that it loses
PRIOR_GUESSES: Final = 4.0  # what acceptance counts for before anything was seen: half of so many were right
PRIOR_MISSES: Final = 2.0  # the same of a lookup: all of them wrong
FORGETTING: Final = 0.95  # weight of what was seen one call earlier
UNTRIED_S: Final = 0.25  # what a guess more is taken to cost before it was tried, in plain calls


class Drafter(Protocol):
    """Guesses the next tokens of an answer."""

    def prepare(self) -> None:
        """Do what has to be done once for an answer; it does not count as the cost of a guess."""
        ...

    def draft(self, answer: Sequence[int], n_max: int) -> list[int]:
        """At most ``n_max`` tokens that may follow ``answer``, all of it so far; none if it cannot tell."""
        ...

    def accuracy(self, answer: Sequence[int]) -> float | None:
        """How many of its guesses would have been right in ``answer``; None if asking it costs something."""
        ...


class PromptLookup:
    """Guesses that what followed the last few tokens before will follow again (llama.cpp's "ngram-simple").

    Args:
        prompt: token ids, with None for what is no token; guesses do not run across it.
    """

    def __init__(self, prompt: Sequence[int | None]) -> None:
        self._seen: list[int | None] = []
        self._followed_at: dict[tuple[int | None, ...], int] = {}
        self._n_prompt = len(prompt)
        self._judged, self._right = PRIOR_MISSES, 0.0
        self._extend(prompt)

    def prepare(self) -> None:
        """Nothing has to be done."""

    def draft(self, answer: Sequence[int], n_max: int) -> list[int]:
        """See Drafter; a repetition that has begun is taken to go on."""
        self._read(answer)
        return self._guesses(n_max)

    def accuracy(self, answer: Sequence[int]) -> float:
        """See Drafter: what it would have guessed is compared with what came."""
        self._read(answer)
        return self._right / self._judged

    def _read(self, answer: Sequence[int]) -> None:
        for token in answer[len(self._seen) - self._n_prompt :]:
            for guess in self._guesses(1):
                self._judged = FORGETTING * self._judged + 1
                self._right = FORGETTING * self._right + (guess == token)
            self._extend([token])

    def _guesses(self, n_max: int) -> list[int]:
        found = (self._followed_at.get(tuple(self._seen[-size:])) for size in NGRAM_SIZES)
        at = next((at for at in found if at is not None), None)
        if at is None:
            return []
        guesses: list[int] = []
        for index in range(at, at + n_max):
            beyond = index - len(self._seen)
            token = self._seen[index] if beyond < 0 else guesses[beyond]
            if token is None:
                break
            guesses.append(token)
        return guesses

    def _extend(self, tokens: Sequence[int | None]) -> None:
        for token in tokens:
            for ngram in (tuple(self._seen[-size:]) for size in NGRAM_SIZES):
                if None not in ngram:
                    self._followed_at[ngram] = len(self._seen)
            self._seen.append(token)


class Pace:
    """How many tokens to guess, from what guessing has cost and gained so far; 0 while it would lose.

    If each guess is right with probability a, n guesses give 1 + a + … + aⁿ tokens in the time of one call
    (Leviathan et al. 2023, arXiv 2211.17192, section 3). What calls take is measured here, and a too, unless
    the drafter knows it; otherwise guessing pauses when no n gains, each time for twice as long. All this is
    remembered from one answer to the next.

    ``n_drafted`` tokens of this answer were guessed, ``n_accepted`` of them right; ``written_s`` is what
    writing it has taken.
    """

    def __init__(self, draft_max: int) -> None:
        self._draft_max = draft_max
        self._call_s: dict[int, deque[float]] = {}  # by the number of guesses
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._judged, self._right = PRIOR_GUESSES, PRIOR_GUESSES / 2
        self.begin()

    def begin(self) -> None:
        self.n_drafted = self.n_accepted = 0
        self.written_s = 0.0

    @property
    def has_tried(self) -> bool:
        """Whether a guess was ever checked."""
        return any(self._call_s)

    def length(self, accuracy: float | None = None) -> int:
        """How many tokens to guess now, if so many guesses of the drafter are right."""
        if 0 not in self._call_s:
            return 0
        if accuracy is not None:
            return self._best_length(accuracy)
        if self._pause:
            self._pause -= 1
            return 0
        best = self._best_length(self._right / self._judged)
        if best == 0:
            self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
            self._judged, self._right = PRIOR_GUESSES, PRIOR_GUESSES / 2
        return best

    def record(self, n_drafted: int, n_accepted: int, seconds: float) -> None:
        """Note what a call with ``n_drafted`` guesses took, guessing included, and how many were right."""
        self._call_s.setdefault(n_drafted, deque(maxlen=REMEMBERED_CALLS)).append(seconds)
        self.written_s += seconds
        if n_drafted == 0:
            return
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        # Guesses after the first wrong one say nothing about the rate.
        self._judged = FORGETTING * self._judged + min(n_drafted, n_accepted + 1)
        self._right = FORGETTING * self._right + n_accepted

    def _best_length(self, accuracy: float) -> int:
        if LEAST_GAIN * (1 - accuracy) > 1:
            return 0  # not even if guesses cost nothing
        sizes = np.arange(self._draft_max + 1)
        tokens = np.array(list(accumulate(accumulate(repeat(accuracy, self._draft_max), mul, initial=1.0))))
        tried = sorted(self._call_s)
        seconds = np.interp(sizes, tried, [median(self._call_s[size]) for size in tried])
        plain = seconds[0]
        seconds += UNTRIED_S * plain * np.maximum(sizes - tried[-1], 0)
        gains = tokens * plain / np.maximum(seconds, 1e-9)
        best = int(np.argmax(gains))
        return best if gains[best] >= LEAST_GAIN else 0


class Speculation:
    """How an engine guesses ahead, if it does.

    Args:
        spec_type: without a second model.
        draft_max: tokens to guess at a time at most.
        draft: a second model that guesses instead.
    """

    def __init__(self, spec_type: SpecType, draft_max: int, draft: DraftModel | None) -> None:
        self._spec_type = spec_type
        self.draft = draft
        self.pace = Pace(draft_max)

    def tokens(
        self,
        decoder: Decoder,
        sampler: Sampler,
        prompt: Prompt,
        segments: Sequence[Segment],
        stop: StopFlag,
        *,
        reading_s: float,
    ) -> Iterator[int]:
        """Tokens of the answer to ``prompt``, which ``decoder`` has read as ``segments``.

        Args:
            reading_s: seconds that it takes to read the prompt. A draft model has to read it, too, so it is
                not asked before writing has taken as long: no short answer waits for it.
        """
        self.pace.begin()
        if self.draft is not None:
            draft = self.draft.begin(prompt, stop)
            return guess_ahead(decoder, sampler, draft, self.pace, patience_s=PATIENCE * reading_s)
        if self._spec_type == "none":
            return decoder.tokens(sampler)
        tokens = [one if isinstance(one, int) else None for one in positions_of(segments)]
        return guess_ahead(decoder, sampler, PromptLookup(tokens), self.pace)


def guess_ahead(
    decoder: Decoder, sampler: Sampler, drafter: Drafter, pace: Pace, *, patience_s: float = 0.0
) -> Iterator[int]:
    """Tokens of the answer like ``decoder.tokens(sampler)``, several a call where guesses are right.

    When it is left early, the decoder may hold guesses beyond the last token that was taken; they are
    recorded like all others, and were what the sampler chose. The drafter is not asked before writing has
    taken ``patience_s`` seconds.

    Raises:
        DecodeError: llama.cpp failed.
    """
    context = decoder.context
    token = sampler.sample(context)
    answer = [token]
    yield token
    is_prepared = False
    while (room := min(decoder.n_ctx - decoder.n_past, context.n_batch)) > 0:
        accuracy = drafter.accuracy(answer)
        n_max = min(pace.length(accuracy), room - 1) if pace.written_s >= patience_s else 0
        start, began = decoder.n_past, perf_counter()
        guesses = list[int]()
        if n_max and accuracy is None and not pace.has_tried:
            # Any guess tells what checking costs, before a draft model reads the prompt.
            guesses = [token] * n_max
        elif n_max:
            if not is_prepared:
                drafter.prepare()
                is_prepared, began = True, perf_counter()  # what is done once is not the cost of a guess
            guesses = drafter.draft(answer, n_max)
        decoder.append([token, *guesses], n_outputs=1 + len(guesses))
        chosen = list(_chosen(sampler, decoder, guesses))
        decoder.cut(start + len(chosen))
        pace.record(len(guesses), len(chosen) - 1, perf_counter() - began)
        answer += chosen
        yield from chosen
        token = chosen[-1]


def _chosen(sampler: Sampler, decoder: Decoder, guesses: Sequence[int]) -> Iterator[int]:
    """What the sampler takes at each guess, up to the first that was wrong, or one beyond the last."""
    for index, guess in enumerate((*guesses, None)):
        token = sampler.sample(decoder.context, index - len(guesses) - 1)
        yield token
        if token != guess:
            return
