"""Regular expressions of a JSON Schema: which ones llguidance can be trusted with."""

import re
from math import prod
from typing import Final

MAX_LENGTH: Final = 1_000
MAX_REPETITIONS: Final = 10_000  # all counts of a pattern, multiplied

CLASS: Final = re.compile(
    r"(?P<before>(?<!\\)(?:\\\\)*)\[(?P<negation>\^?)(?P<chars>(?:\\.|[^\]\\])*)\]", re.DOTALL
)
COUNT: Final = re.compile(r"\{(\d{1,9}),?(\d{0,9})\}")
# In a class, Rust takes them for a class within it, or for what two classes have in common.
RUST_ONLY: Final = re.compile(r"\[|&&|--|~~")
OPEN: Final = re.compile(r"\[\^|\\[WSDPpxu]|\(\?\w*i|[^\x00-\x7f]")
QUOTE: Final = re.compile(r'"|\\\\|\\x(22|5c|\{)|\\u(0022|005c)', re.IGNORECASE)


def trouble(pattern: str) -> str | None:
    """Why ``pattern`` cannot be used, whatever stands beside it; None if it can."""
    counts = [max(map(int, filter(None, pair))) for pair in COUNT.findall(pattern)]
    if len(pattern) > MAX_LENGTH or prod(max(count, 1) for count in counts) > MAX_REPETITIONS:
        return "is too large"
    if any(RUST_ONLY.search(re.sub(r"\\.", "x", found["chars"])) for found in CLASS.finditer(pattern)):
        return r"has a class that not everybody reads alike: write \[ or \& in it"
    return None


def is_open(pattern: str) -> bool:
    """Whether it may have a class that has characters beyond ASCII, and leaves some of ASCII out.

    llguidance then lets quotes and backslashes in, although they are left out, unless no string may have any;
    and where none may have any, it leaves out those that must be there (see ``needs_quotes``).
    """
    return OPEN.search(pattern) is not None


def needs_quotes(pattern: str) -> bool:
    """Whether it speaks of quotes or backslashes other than to leave them out."""
    return QUOTE.search(CLASS.sub(_without_negated, pattern)) is not None


def _without_negated(found: re.Match[str]) -> str:
    return found["before"] if found["negation"] else found[0]
