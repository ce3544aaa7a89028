import json
import random
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.grammar.json_schema import ENFORCED
from acestep_gguf.grammar.matcher import Grammar, Matcher, Vocabulary
from tests.support.schemas import Schema, follows, schemas

# Each byte, and what makes tokens awkward: several bytes, halves of characters, the same bytes twice, bytes
# that are not UTF-8, a zero inside, control tokens, two that stop.
TOKENS = (
    *(bytes([byte]) for byte in range(256)),
    *(b'{"', b'": ', b", ", b'", "', b"12", b"0000", b"true", b"]}", b"\\", b'\\"', b"\n", b"   "),
    *("é".encode(), "é".encode(), "€".encode()[:2], "€".encode()[1:], b"\xed\xa0\x80", b"\xc0\xaf", b"a\0b"),
    *(b"", b"", b"", b""),
)
STOP = (len(TOKENS) - 1, len(TOKENS) - 3)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENS, STOP, lambda text: [*text.encode()])


def walk(grammar: Grammar, seed: int, most: int = 2000) -> str | None:
    """A text that the grammar lets through, drawn token by token; None if it is not whole after so many."""
    matcher, draw, text = Matcher(vocabulary(), grammar), random.Random(seed), b""
    for _ in range(most):
        logits = np.array([draw.random() for _ in TOKENS], np.float32)
        matcher.restrict(logits)
        token = int(logits.argmax())
        assert logits[token] > -np.inf
        matcher.accept(token)
        if token in STOP:
            return text.decode()
        assert TOKENS[token], "a control token is no text"
        text += TOKENS[token]
    return None


@settings(deadline=None, max_examples=150)
@given(schemas(), st.integers(0, 2**32))
def test_what_is_let_through_parses_and_validates(schema: Schema, seed: int) -> None:
    text = walk(Grammar.of_schema(schema), seed)
    assert text is not None, "a bounded schema has an end"
    assert follows(text, schema), text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "string"},
        {"type": "number"},
        {
            "type": "object",
            "properties": {"a": {"type": "null"}},
            "additionalProperties": {"type": "integer"},
        },
        {
            "type": "object",
            "patternProperties": {"^[ab]{1,2}$": {"type": "null"}},
            "additionalProperties": False,
        },
        {"allOf": [{"properties": {"a": {"type": "null"}}}, {"required": ["a"], "maxProperties": 2}]},
        {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
        {"const": '\x01"\\\u2028\U0001f389'},
    ],
)
def test_what_has_no_bounds_is_valid_where_it_ends(schema: Schema, seed: int) -> None:
    text = walk(Grammar.of_schema(schema), seed, most=300)
    assert text is None or follows(text, schema)


def test_blanks_are_written_once() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"const": 1}, "minItems": 2}}}
    schema |= {"required": ["a"]}
    text = walk(Grammar.of_schema(schema), 1)
    assert text is not None
    assert text == json.dumps(json.loads(text))


def test_after_the_end_nothing_is_asked() -> None:
    matcher = Matcher(vocabulary(), Grammar.of_schema({"const": 1}))
    matcher.accept(ord("1"))
    logits = np.zeros(len(TOKENS), np.float32)
    matcher.restrict(logits)
    assert set(np.flatnonzero(logits == 0)) == set(STOP)
    matcher.accept(STOP[1])
    after = np.zeros(len(TOKENS), np.float32)
    matcher.restrict(after)  # guesses ahead may lie behind the end
    assert not after.any()
    matcher.accept(ord("x"))


def test_a_token_that_was_not_allowed_is_an_error() -> None:
    matcher = Matcher(vocabulary(), Grammar.of_schema({"const": 1}))
    with pytest.raises(DecodeError, match="json_schema cannot be followed"):
        matcher.accept(ord("2"))
    with pytest.raises(DecodeError, match="json_schema"):
        matcher.restrict(np.zeros(len(TOKENS), np.float32))


def test_a_model_without_a_token_for_it() -> None:
    letters = Vocabulary([b"a", b""], [1], lambda _: [])
    matcher = Matcher(letters, Grammar.of_schema({"const": 1}))
    with pytest.raises(DecodeError, match="no token"):
        matcher.restrict(np.zeros(2, np.float32))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "#", "#/$defs/a", "^a", "(", "date", "string", "integer", "object", "array"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ENFORCED, "$defs", "a", "^b", "not"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from([*ENFORCED, "$defs"]), VALUES, max_size=4), st.integers(0, 2**32))
def test_nonsense_is_refused_or_followed(schema: Schema, seed: int) -> None:
    with suppress(UsageError):
        text = walk(Grammar.of_schema(schema), seed, most=100)
        assert text is None or follows(text, schema), text


CLASSES = (
    '[^"]',
    r"[^\"]",
    r"[^\\]",
    "[^ -~]",
    r"[^\x01]",
    r"[\x00-!#-\[\]-\xff]",
    r"[ !#-\[\]-é]",
    "[ -é]",
    "(?:.é?)",
    r"\\\"?\w",
    r"\S",
    "[a-zé]",
)


@pytest.mark.parametrize("chars", CLASSES)
def test_a_class_of_a_pattern_leaves_out_what_it_leaves_out(chars: str) -> None:
    schema: Schema = {"type": "string", "pattern": f"^{chars}{{1,12}}$"}
    texts = [walk(Grammar.of_schema(schema), seed) for seed in range(100)]
    assert all(text is not None and follows(text, schema) for text in texts), texts
