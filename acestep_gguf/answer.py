"""What an answer consists of."""

from dataclasses import dataclass
from typing import Any, Literal

from acestep_gguf.errors import DecodeError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts.

    ``prompt_tokens`` counts text and images, ``image_tokens`` the images among them, and ``cached_tokens``
    those of both that were computed before, for another answer. Of ``completion_tokens``, the
    ``accepted_tokens`` were guessed ahead, and so were others that were wrong, ``drafted_tokens`` in all.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds, one after another: loading since the last answer, pictures, reading the prompt, writing.

    ``prefill_tokens`` and ``decode_tokens`` are the positions computed in ``prefill_s`` and ``decode_s``. The
    first token of an answer costs none: it is chosen from what the last position of the prompt gave. Nor does
    a call of llama.cpp that was cancelled.
    """

    load_s: float
    image_s: float
    prefill_s: float
    decode_s: float
    prefill_tokens: int
    decode_tokens: int

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Speed of reading the prompt; None if nothing was computed."""
        return _speed(self.prefill_tokens, self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Speed of writing the answer; None if nothing was computed."""
        return _speed(self.decode_tokens, self.decode_s)

    @property
    def total_s(self) -> float:
        """Seconds from the question to the end of the answer, and of loading before it."""
        return self.load_s + self.image_s + self.prefill_s + self.decode_s


def _speed(n_tokens: int, seconds: float) -> float | None:
    return n_tokens / seconds if n_tokens and seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer.

    ``finish_reason`` is "length" when max_tokens or the context ended it, "cancelled" when somebody did.
    ``tokens`` are what the model wrote, without the one that ended it; after a string of ``stop`` they may
    reach further than ``text``. With ``seed``, which its tokens were drawn with, it can be made again; it is
    None where none was drawn.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None

    @property
    def data(self) -> Any:
        """The value that ``text`` is as JSON, which it is if there was a ``json_schema``.

        Raises:
            DecodeError: it is not JSON, or was cut before its end.
        """
        import json  # noqa: PLC0415 (importing the package costs nothing)

        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise DecodeError(
                f"the answer is no JSON (finish_reason {self.finish_reason}: {error}): "
                "ask with json_schema, and with more max_tokens if it was cut."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedToken:
    """A token, what it spells, and the natural logarithm of its probability."""

    token: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token of an answer, and the most probable ones in its place, if they were asked for."""

    chosen: RankedToken
    top: tuple[RankedToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer as it is written; the last one has the whole ``answer``.

    ``logprobs`` are of the tokens chosen since the last chunk, if they were asked for; the text of a token
    may come later.
    """

    text: str
    answer: Answer | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
