"""Which tokens may come next in an answer that follows a grammar, by llguidance.

llguidance reads token by token with bounds on its work, and says no where llama.cpp's own grammar sampler
ends the process: with a token that it did not let through, or a grammar that is too much for it.
"""

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.grammar.gbnf import lark_of_gbnf
from acestep_gguf.grammar.json_schema import checked, read_schema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

FloatArray = npt.NDArray[np.float32]

# Blanks where people put them, and no others: a model can write blanks for ever. The rest are defaults, which
# a schema must not change.
JSON_STYLE: "Final[JsonCompileOptions]" = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
}
PROBED_BYTES: Final = 64


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's form, and the option that it was made of, for errors."""

    text: str
    option: str

    @classmethod
    def of_schema(cls, source: object) -> "Grammar":
        """What follows a JSON Schema: a dict, JSON text, a file with it, or a pydantic model's.

        Raises:
            UsageError: it is not a schema, or asks for what cannot be enforced.
        """
        schema = checked(read_schema(source))
        style: JsonCompileOptions = {
            **JSON_STYLE,
            "json_allowed_escapes": None if schema.quotes else "nrbtfu",
        }
        try:
            grammar = cls(LLMatcher.grammar_from_json_schema(schema.text, overrides=style), "json_schema")
        except ValueError as error:
            raise UsageError(
                f"json_schema cannot be used: {_line(error)}.", settings=["json_schema"]
            ) from error
        grammar.check()
        return grammar

    @classmethod
    def of_gbnf(cls, source: str | os.PathLike[str]) -> "Grammar":
        """A grammar in llama.cpp's notation, or a file with it.

        Raises:
            UsageError: it is not a grammar, or cannot be followed.
        """
        grammar = cls(LLMatcher.grammar_from_lark(lark_of_gbnf(source)), "grammar")
        grammar.check()
        return grammar

    def check(self) -> None:
        """Try it without a model, byte by byte.

        Raises:
            UsageError: it is damaged, or so large that it cannot be followed.
        """
        try:
            matcher = Matcher(_all_bytes(), self)
            draw = random.Random(0)  # noqa: S311 (nothing is secret)
            for _ in range(PROBED_BYTES):
                allowed = np.flatnonzero(matcher.allowed()[:256])
                if not len(allowed):
                    return
                matcher.accept(int(draw.choice(allowed)))
        except DecodeError as error:
            raise UsageError(str(error), settings=error.settings) from error


class Vocabulary:
    """The tokens of a model, as a grammar sees them.

    Args:
        tokens: the bytes of each; none of a control token, which is no text.
        stop_tokens: ids of those that end an answer.
        tokenize: a text into ids.
    """

    def __init__(
        self, tokens: Sequence[bytes], stop_tokens: Sequence[int], tokenize: Callable[[str], list[int]]
    ) -> None:
        self.n_tokens = len(tokens)
        self.stop_tokens = frozenset(stop_tokens)
        self.native = LLTokenizer(
            TokenizerWrapper(_Tokens(tokens, stop_tokens[0], tokenize)), eos_token=list(stop_tokens)
        )


class _Tokens:
    """What TokenizerWrapper takes."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], eos: int, tokenize: Callable[[str], list[int]]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = eos
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # it tries whether it may give bytes
            raise TypeError
        return self._tokenize(text)


class Matcher:
    """Follows one answer, token by token.

    Raises:
        DecodeError: the grammar is damaged, or too large to follow.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        self._vocabulary = vocabulary
        self._option = grammar.option
        self._native = LLMatcher(vocabulary.native, grammar.text, log_level=0)
        self._has_ended = False
        self._check()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, bool [n_tokens]; the stop tokens among them, where it may end.

        Raises:
            DecodeError: that is too much to find out.
        """
        bits = np.frombuffer(self._native.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little", count=self._vocabulary.n_tokens).view(np.bool_)

    def restrict(self, logits: FloatArray) -> None:
        """Give tokens that may not come next no chance; ``logits``, float32 [n_tokens], are changed.

        After a stop token, nothing is changed any more.

        Raises:
            DecodeError: that is too much to find out, or the vocabulary has no token that may come next.
        """
        if self._has_ended:
            return
        np.putmask(logits, ~self.allowed(), -np.inf)

    def accept(self, token: int) -> None:
        """Go on after ``token``.

        Raises:
            DecodeError: it was not allowed, or what comes next is too much to find out.
        """
        self._has_ended |= token in self._vocabulary.stop_tokens
        if not self._has_ended:
            self._native.consume_token(token)
            self._check()

    def _check(self) -> None:
        if not self._native.is_error():
            return
        reason = _line(self._native.get_error())
        if reason == "NoExtensionBias":
            reason = "this model has no token that could come next"
        raise DecodeError(f"{self._option} cannot be followed: {reason}.", settings=[self._option])


@cache
def _all_bytes() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], [256], lambda text: [*text.encode()])


def _line(error: object) -> str:
    """llguidance's reason on one line, without what it adds about its state and its form of the grammar."""
    reason = re.split(r"<state>|\n\s*\d+ \| ", str(error))[0]
    return " ".join(reason.split())[:200].rstrip(". ")
