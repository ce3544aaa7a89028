"""GBNF, llama.cpp's notation for grammars, in llguidance's: Lark's.

A rule that does not lead back to itself becomes one regular expression, which llguidance follows fast and
exactly. In others, what lies between references is read as by a lexer: the longest match counts.
"""

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from acestep_gguf.errors import UsageError
from acestep_gguf.grammar.sources import text_or_file

ESCAPE: Final = r'\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\[trn\\"\[\]]'
CHAR: Final = rf"(?:{ESCAPE}|[^\\])"
TOKEN: Final = re.compile(
    rf"""
      (?P<blank>   \s+ | \#[^\n]* )
    | (?P<rule>    [\w-]+ \s* ::= )
    | (?P<name>    [\w-]+ )
    | (?P<literal> " (?: {ESCAPE} | [^\\"] )* " )
    | (?P<chars>   \[ \^? (?: {ESCAPE} | [^\\\]] )+ \] )
    | (?P<any>     \. )
    | (?P<mark>    [|()] )
    | (?P<count>   [*+?] | \{{ \s*\d{{1,4}}\s* (?: , \s*\d{{0,4}}\s* )? \}} )
    """,
    re.VERBOSE | re.ASCII,
)
ESCAPED: Final = {"t": "\t", "r": "\r", "n": "\n"}
MAX_RULES: Final = 400
MAX_DEPTH: Final = 48


class Token(NamedTuple):
    """A piece of a grammar: which of TOKEN's kinds, and its text."""

    kind: str
    text: str


def lark_of_gbnf(source: str | os.PathLike[str]) -> str:
    """The grammar that ``source`` is, or that is in the file of this name, in Lark's notation.

    Raises:
        UsageError: it cannot be read, or is no GBNF; a token of the vocabulary (``<think>``) cannot be had.
    """
    rules = _rules(text_or_file("grammar", source, is_text=lambda text: "::=" in text))
    used = {name: {token.text for token in body if token.kind == "name"} for name, body in rules.items()}
    if unknown := set().union(*used.values()) - rules.keys():
        raise _refused(f"it has no rule {min(unknown)}")
    if "root" not in rules:
        raise _refused("it has no rule root")
    flat = _not_recursive(used)
    names = {name: f"{'T' if name in flat else 'r'}{number}" for number, name in enumerate(rules)}
    lines = [f"{names[name]}: {_lark(body, names)}" for name, body in rules.items()]
    return "\n".join(["%llguidance {}", f"start: {names['root']}", *lines])


def _rules(text: str) -> dict[str, list[Token]]:
    """The tokens of each rule's right side."""
    rules: dict[str, list[Token]] = {}
    depth = 0
    for token in _tokens(text):
        if token.kind == "rule":
            name = token.text.removesuffix("::=").rstrip()
            if name in rules or depth or len(rules) == MAX_RULES:
                raise _refused(f"rule {name} comes twice, inside ( ) or after {MAX_RULES} others")
            body = rules[name] = []
        elif not rules:
            raise _refused(f"it begins with {token.text!r}, not with a rule")
        else:
            depth += (token.text == "(") - (token.text == ")")
            if not 0 <= depth <= MAX_DEPTH:
                raise _refused(f"its ( ) do not match, or are nested deeper than {MAX_DEPTH}")
            body.append(token)
    if depth:
        raise _refused("its last ( is not closed")
    return rules


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None:
            line = text.count("\n", 0, position) + 1
            raise _refused(f"line {line} cannot be read from {text[position : position + 20]!r} on")
        if found.lastgroup is not None and found.lastgroup != "blank":
            yield Token(found.lastgroup, found[0])
        position = found.end()


def _not_recursive(used: dict[str, set[str]]) -> set[str]:
    """The rules from which no path leads into a circle."""
    flat: set[str] = set()
    while more := {name for name in used.keys() - flat if used[name] <= flat}:
        flat |= more
    return flat


def _lark(body: list[Token], names: dict[str, str]) -> str:
    pieces: list[str] = []
    before = "|"
    for token in [*body, Token("mark", "|")]:
        if before in {"|", "("} and token.text in {"|", ")"}:
            pieces.append('""')  # an alternative that is empty
        before = token.text if token.kind == "mark" else ""
        pieces.append(_piece(token, names))
    return " ".join(pieces[:-1])


def _piece(token: Token, names: dict[str, str]) -> str:
    match token.kind:
        case "name":
            return names[token.text]
        case "literal":
            chars = re.findall(CHAR, token.text[1:-1], re.DOTALL)
            return f"/{''.join(map(_regex_char, chars))}/" if chars else '""'
        case "chars":
            return f"/{_regex_class(token.text[1:-1])}/"
        case "any":
            return "/(?s:.)/"
        case _:
            return "".join(token.text.split())


def _regex_class(chars: str) -> str:
    negation = "^" if chars.startswith("^") else ""
    ranges = re.findall(rf"({CHAR})(?:-({CHAR}))?", chars[len(negation) :], re.DOTALL)
    parts = ("-".join(map(_regex_char, filter(None, one))) for one in ranges)
    return f"[{negation}{''.join(parts)}]"


def _regex_char(char: str) -> str:
    """A character of GBNF, escaped or not, as a regular expression."""
    if char[0] != "\\":
        code = ord(char)
    elif char[1] in "xuU":
        code = int(char[2:], 16)
    else:
        code = ord(ESCAPED.get(char[1], char[1]))
    return f"\\x{{{code:X}}}"


def _refused(reason: str) -> UsageError:
    return UsageError(f"grammar cannot be used: {reason}.", settings=["grammar"])
