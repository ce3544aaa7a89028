"""A SentencePiece vocabulary, as tokenizer.json has it, for llama.cpp's tokenizer "llama".

tokenizer.json holds SentencePiece's BPE as merges in the order of their ranks, llama.cpp merges whatever
gives the token of the best score. Both do the same if the scores fall as the ranks rise, and if every way to
put a token together is among the merges: both is checked, and what differs is refused.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from gguf import TokenType

from acestep_gguf.bundle.schema import SpacePrefix
from acestep_gguf.errors import UnsupportedModelError

SPACE: Final = "▁"
BYTE_TOKENS: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Of tokens that are not made by a merge.
LOWEST_SCORE: Final = -1e9

PREPEND_SCHEMES: Final[Mapping[str, SpacePrefix]] = {"never": "never", "first": "first", "always": "always"}
_REPLACE: Final = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> list[float]:
    """A score for each of ``tokens``, so that llama.cpp merges as ``merges`` ("left right") say.

    Raises:
        UnsupportedModelError: no scores do that.
    """
    _check_all_ways_are_merges(dict(zip(tokens, types, strict=True)), set(merges))
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        token = merge.replace(" ", "", 1)
        first.setdefault(token, rank)
        last[token] = rank

    found: dict[str, float] = {}
    group: list[str] = []  # tokens whose merges' ranks interleave, and which share a score
    end = -1
    for token, rank in first.items():
        group = [*group, token] if rank < end else [token]
        # Runs of one character are merged from the left, by either rule; tests compare them.
        if len(group) > 1 and len(set("".join(group))) > 1:
            raise UnsupportedModelError(
                f"the tokenizer's merges into {group[0]!r} and {token!r} interleave: llama.cpp cannot follow."
            )
        found[token] = found[group[0]] if len(group) > 1 else -float(len(found))
        end = max(end, last[token])
    return [found.get(token, LOWEST_SCORE) for token in tokens]


def _check_all_ways_are_merges(types: Mapping[str, int], merges: Set[str]) -> None:
    """llama.cpp merges any two tokens that make a third, even one that no text may become."""
    for token, kind in types.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            is_merge = kind == TokenType.NORMAL and f"{left} {right}" in merges
            if left in types and right in types and not is_merge:
                raise UnsupportedModelError(
                    f"the tokenizer does not make {token!r} of {left!r} and {right!r}, as llama.cpp would."
                )


def check_bytes(known: Set[str]) -> None:
    """Refuse a vocabulary without a token for each byte: llama.cpp ends the process on a byte without one.

    Raises:
        UnsupportedModelError: a byte has no token.
    """
    if missing := set(BYTE_TOKENS) - known:
        raise UnsupportedModelError(
            f"the tokenizer has no token {min(missing)!r}: only byte fallback is supported."
        )


def space_prefix(normalizer: Any, pre_tokenizer: Any) -> SpacePrefix:
    """Which texts get a space before them: see PromptSpec.

    Raises:
        UnsupportedModelError: a normalizer or pre-tokenizer that llama.cpp would not follow exactly.
    """
    match normalizer, pre_tokenizer:
        case None, {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": str(scheme),
            "split": False,
        } if scheme in PREPEND_SCHEMES:
            return PREPEND_SCHEMES[scheme]
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}, None if (
            replace == _REPLACE
        ):
            return "prepend"
        case replace, None if replace == _REPLACE:
            return "never"
    raise UnsupportedModelError(
        "the tokenizer's normalizer and pre-tokenizer are not Llama's: only Llama's are supported."
    )
