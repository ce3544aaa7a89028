"""Whether a vocabulary is one of Tekken's, whose merges follow from its tokens (llama/tekken.py)."""

from collections.abc import Mapping, Sequence
from typing import Final

from gguf import TokenType

from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from acestep_gguf.llama.tekken import byte_tokens, normal_tokens, words

LONGEST: Final = 1024  # bytes of a token; the published vocabulary's have 128 at most
ADDED: Final = (TokenType.CONTROL, TokenType.USER_DEFINED)


def check_tekken(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> None:
    """Check that text becomes what ``merges`` ("left right") make of it.

    Raises:
        CheckpointError: a byte has no token.
        UnsupportedModelError: other merges, or an added token that may be one word, which the tokenizer would
            make of plain text.
    """
    normal = normal_tokens(tokens, types)
    try:
        ids = byte_tokens(normal)
    except ValueError as error:
        raise CheckpointError(f"the tokenizer is damaged ({error}): get the file again.") from error
    pairs = (merge.partition(" ") for merge in merges)
    found = [tuple(normal.get(part) for part in (left + right, left, right)) for left, _, right in pairs]
    if max(map(len, ids)) > LONGEST or found != _merges_of(ids):
        raise UnsupportedModelError("the tokenizer's merges are not those of a Tekken vocabulary.")
    for token, kind in zip(tokens, types, strict=True):
        if kind in ADDED and len([*words(token)]) == 1:
            raise UnsupportedModelError(f"plain text could become the added token {token!r}: not supported.")


def _merges_of(ids: Mapping[bytes, int]) -> list[tuple[int, int, int]]:
    """All ways to make a token of two, as the ids of the token and of its parts, in their order."""
    return sorted(
        (token_id, ids[token[:middle]], ids[token[middle:]])
        for token, token_id in ids.items()
        for middle in range(1, len(token))
        if token[:middle] in ids and token[middle:] in ids
    )
