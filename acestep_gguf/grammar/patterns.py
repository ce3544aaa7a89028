"""Regular expressions of a JSON Schema: which ones llguidance can be trusted with."""

import re
from typing import Final

MAX_SIZE: Final = 10_000  # characters and classes, each as often as it is repeated

CLASS: Final = re.compile(
    r"(?P<before>(?<!\\)(?:\\\\)*)\[(?P<negation>\^?)(?P<chars>(?:\\.|[^\]\\])*)\]", re.DOTALL
)
PIECE: Final = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|\{(\d{1,9})(?:,(\d{0,9}))?\}|.", re.DOTALL)
# In a class, Rust takes them for a class within it, or for what two classes have in common.
RUST_ONLY: Final = re.compile(r"\[|&&|--|~~")
OPEN: Final = re.compile(r"\[\^|\\[WSDPpxu]|\(\?\w*i|[^\x00-\x7f]")
QUOTE: Final = re.compile(r'"|\\\\|\\x(22|5c|\{)|\\u(0022|005c)', re.IGNORECASE)


def trouble(pattern: str) -> str | None:
    """Why ``pattern`` cannot be used, whatever stands beside it; None if it can."""
    if _size(pattern) > MAX_SIZE:
        return "is too large"
    if any(RUST_ONLY.search(re.sub(r"\\.", "x", found["chars"])) for found in CLASS.finditer(pattern)):
        return r"has a class that not everybody reads alike: write \[ or \& in it"
    return None


def _size(pattern: str) -> int:
    """How large it is when what is repeated is written out."""
    groups, last = [0], 0  # sizes so far of the groups that are open, and of what a count would repeat
    for piece in PIECE.finditer(pattern):
        if piece[1]:
            groups[-1] += last * max(int(piece[2] or piece[1]) - 1, 0)
        elif piece[0] == "(":
            groups.append(0)
        elif piece[0] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        else:
            last = 1
            groups[-1] += last
    return sum(groups)


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
