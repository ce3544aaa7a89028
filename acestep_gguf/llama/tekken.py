"""Tekken, the tokenizer of Mistral's newer models, as the tokenizers library computes it.

llama.cpp cuts text by a pattern that knows case in ASCII only and takes marks for no part of a word, so that
accents in capitals, Hindi or Thai become other tokens, and by std::regex, which overflows the stack on long
words. So text is cut and merged here; the vocabulary is that of the GGUF file.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from acestep_gguf.bundle.decoder_info import NORMAL
from acestep_gguf.bundle.gguf_header import GGUFHeader, StringArray
from acestep_gguf.errors import BundleError

NAME: Final = "tekken"  # tokenizer.ggml.pre
SPLIT: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The same for the kinds of characters: U upper or title case, l lower case, o other letters, m marks,
# n numbers, r ends of lines, s other white space, - the rest.
_SPLIT_BY_KIND: Final = re.compile(
    "[- sm/]?[Uom]*[lom]+|[- sm/]?[Uom]+[lom]*|n| ?[-m/]+[r/]*|[ sr]*r+|[ sr]+(?![^ sr])|[ sr]+"
)
_KIND_OF_CATEGORY: Final = {
    **dict.fromkeys(("Lu", "Lt"), "U"),
    **dict.fromkeys(("Lm", "Lo"), "o"),
    **dict.fromkeys(("Mn", "Mc", "Me"), "m"),
    **dict.fromkeys(("Nd", "Nl", "No"), "n"),
    "Ll": "l",
}
_KIND_OF_CHARACTER: Final = {
    **dict.fromkeys("\t\v\f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", "s"),
    **dict.fromkeys(map(chr, range(0x2000, 0x200B)), "s"),
    **dict.fromkeys("\r\n", "r"),
    " ": " ",
    "/": "/",
}

# Characters of Unicode 15 and 16, which the tokenizers library knows and Pythons before 3.14 do not.
_NEW: Final = {
    "U": "1c89 a7cb-a7cc a7da a7dc 10d50-10d65",
    "l": "1c8a a7cd a7db 10d70-10d85 1df25-1df2a",
    "o": "105c0-105f3 10d4a-10d4f 10d6f 10ec2-10ec4 1123f-11240 11380-11389 1138b 1138e 11390-113b5 "
    "113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa "
    "16100-1611d 16d40-16d6c 18cff 1b132 1b155 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 "
    "2ebf0-2ee5d 31350-323af",
    "m": "897 cf3 ece 10d69-10d6d 10efc-10eff 11241 113b8-113c0 113c2 113c5 113c7-113ca 113cc-113d0 "
    "113d2 113e1-113e2 11f00-11f01 11f03 11f34-11f3a 11f3e-11f42 11f5a 13440 13447-13455 "
    "1611e-1612f 1e08f 1e4ec-1e4ef 1e5ee-1e5ef",
    "n": "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 "
    "1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa",
}


class _Kinds:
    """What each character becomes for ``_SPLIT_BY_KIND``, as str.translate asks for it."""

    def __init__(self) -> None:
        self._new: dict[int, str] = {}
        for kind, ranges in _NEW.items():
            for item in ranges.split():
                first, _, last = item.partition("-")
                self._new |= dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), kind)

    def __getitem__(self, codepoint: int) -> str:
        character = chr(codepoint)
        kind = _KIND_OF_CHARACTER.get(character) or self._new.get(codepoint)
        return kind or _KIND_OF_CATEGORY.get(unicodedata.category(character), "-")


# What characters are to ``SPLIT``.
KINDS: Final = _Kinds()


def words(text: str) -> Iterator[str]:
    """``text``, cut as ``SPLIT`` cuts it."""
    for match in _SPLIT_BY_KIND.finditer(text.translate(KINDS)):
        yield text[match.start() : match.end()]


class Tekken:
    """A vocabulary: the bytes of each token and its id, single bytes among them.

    Of what can be merged, the token with the lowest id comes first, as in tiktoken; of several ways to put it
    together that of the lowest ids, then the leftmost. So tokenizer.json's merges are made, and only such are
    converted (convert/checkpoint/tekken_merges.py).
    """

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        self._ids = ids

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; nothing in it becomes a control token."""
        tokens: list[int] = []
        for word in words(text):
            data = word.encode()
            token = self._ids.get(data)
            tokens += self._merged(data) if token is None else [token]
        return tokens

    def _merged(self, word: bytes) -> list[int]:
        """Ids of what a word's bytes are merged to."""
        ids = self._ids
        # A part of the word, by its start and by its end; no part starts at what was merged.
        end_of = list(range(1, len(word) + 1))
        start_of = list(range(-1, len(word)))

        def merge(start: int, middle: int) -> tuple[int, ...] | None:
            end = end_of[middle]
            merged = ids.get(word[start:end])
            if merged is None:
                return None
            return merged, ids[word[start:middle]], ids[word[middle:end]], start, middle, end

        merges = [found for middle in range(1, len(word)) if (found := merge(middle - 1, middle))]
        heapify(merges)
        while merges:
            *_, start, middle, end = heappop(merges)
            if end_of[start] != middle or end_of[middle] != end:
                continue  # one of the two was merged with another
            end_of[start], end_of[middle], start_of[end] = end, 0, start
            for left, right in ((start_of[start], start), (start, end)):
                if left >= 0 and right < len(word) and (found := merge(left, right)):
                    heappush(merges, found)
        tokens = []
        start = 0
        while start < len(word):
            tokens.append(ids[word[start : end_of[start]]])
            start = end_of[start]
        return tokens


def normal_tokens(tokens: Iterable[str], types: Iterable[int]) -> dict[str, int]:
    """Ids of the tokens that text can become, by what they are in the vocabulary."""
    kinds = zip(tokens, types, strict=True)
    return {token: token_id for token_id, (token, kind) in enumerate(kinds) if kind == NORMAL}


def byte_tokens(tokens: Mapping[str, int]) -> dict[bytes, int]:
    """Ids by the bytes of the tokens, which byte-level BPE writes in letters.

    Raises:
        ValueError: a token has other letters, or a byte has no token.
    """
    ids = {token.translate(_BYTES).encode("latin-1"): token_id for token, token_id in tokens.items()}
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        raise ValueError(f"the byte {missing[0]} has no token")
    return ids


def read_tekken(header: GGUFHeader) -> Tekken:
    """The vocabulary of a decoder.

    Raises:
        BundleError: it is damaged.
    """
    tokens, types = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, StringArray) or not isinstance(types, memoryview) or len(types) != len(tokens):
        raise BundleError(f"{header.path} is damaged (it has no vocabulary): get the file again.")
    try:
        return Tekken(byte_tokens(normal_tokens((token.decode() for token in tokens.read()), types)))
    except ValueError as error:
        raise BundleError(f"{header.path} has a damaged vocabulary ({error}): get the file again.") from error


def _byte_letters() -> dict[int, int]:
    """The letters that byte-level BPE writes for bytes (GPT-2's ``bytes_to_unicode``), and the bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: byte for byte in printable} | {0x100 + number: byte for number, byte in enumerate(others)}


_LETTERS = _byte_letters()
# Letters of no byte become one that latin-1 does not have.
_BYTES: Final = {**dict.fromkeys(range(0x100), 0x100), **_LETTERS}
