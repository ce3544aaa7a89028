"""A tiny SentencePiece vocabulary in Llama's format, learnt from a few lines, without sentencepiece."""

from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from tests.support.tiny_tokenizer import CORPUS, added_token

SPACE = "▁"
FIRST_TOKENS = ("<unk>", "<s>", "</s>")
ADDED_TOKENS = ("<image>", "<pad>", "<tool_call>")  # the last is not special
N_MERGES = 200
# Llama's vocabulary ends with runs of spaces, all of the same score.
RUNS = tuple(SPACE * length for length in (2, 3, 4, 5, 8, 16))

Scheme = Literal["never", "first", "always", "prepend"]


def n_tokens() -> int:
    """Tokens, without padding rows."""
    return len(vocabulary()) + len(ADDED_TOKENS)


def token_id(token: str) -> int:
    """Id of a control token or an added token."""
    return (FIRST_TOKENS + ADDED_TOKENS).index(token) + (token in ADDED_TOKENS) * (
        len(vocabulary()) - len(FIRST_TOKENS)
    )


def tokenizer_json(scheme: Scheme = "first", *, merges_as_pairs: bool = False) -> dict[str, Any]:
    """tokenizer.json as transformers writes it, and as old versions did for the scheme "prepend"."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    metaspace: dict[str, Any] = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": scheme,
        "split": False,
    }
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(token_id(token), token, special=token != "<tool_call>")
            for token in FIRST_TOKENS + ADDED_TOKENS
        ],
        "normalizer": prepend if scheme == "prepend" else None,
        "pre_tokenizer": None if scheme == "prepend" else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: index for index, token in enumerate(vocabulary())},
            "merges": [list(pair) if merges_as_pairs else " ".join(pair) for pair in merges()],
        },
    }


@cache
def vocabulary() -> tuple[str, ...]:
    """Control tokens, bytes, then what was learnt from CORPUS: the most frequent pairs, and characters."""
    words = Counter(tuple(f"{SPACE}{word}") for word in CORPUS.split())
    characters = sorted({character for word in words for character in word})
    learnt: list[str] = []
    while len(learnt) < N_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if "".join(best) not in learnt:
            learnt.append("".join(best))
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return (*FIRST_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt, *RUNS, *characters)


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """All pairs of tokens that make a token: by its score, then the longer left part, as in transformers."""
    known = vocabulary()
    scores = {token: -float("inf") if token in RUNS else -rank for rank, token in enumerate(known)}
    pairs = [
        (token[:cut], token[cut:])
        for token in known
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    return tuple(sorted(pairs, key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1]))))


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)
