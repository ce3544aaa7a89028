"""A tiny byte-level BPE tokenizer in Qwen2's format, learnt from a few lines, without tokenizers."""

from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
# llama.cpp takes the second for a control token, whatever its file says.
USER_DEFINED_TOKENS = ("<tool_call>", "<|fim_prefix|>")
N_MERGES = 200
CORPUS = """
describe the picture what colour is the square how many circles are there is the red star left of the blue one
there are three pictures the tallest bar is the second one and the shortest is the first read the number
the answer is nothing more than this image shows one two three four five six seven eight nine ten and the word
naïve café übergroß 日本語の文章です 这是一张图片 картинка с красным кругом
print("hello world") def function(argument): return argument
"""


def n_tokens() -> int:
    """Tokens, without padding rows."""
    return len(learn_bpe()[0]) + len(SPECIAL_TOKENS) + len(USER_DEFINED_TOKENS)


def token_id(token: str) -> int:
    """Id of an added token."""
    return len(learn_bpe()[0]) + (*SPECIAL_TOKENS, *USER_DEFINED_TOKENS).index(token)


def added_token(number: int, content: str, *, special: bool) -> dict[str, Any]:
    """One of tokenizer.json's added_tokens."""
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def tokenizer_json(*, merges_as_pairs: bool) -> dict[str, Any]:
    """tokenizer.json, in Qwen2's format; version 0.20 of tokenizers began to write merges as pairs."""
    vocab, merges = learn_bpe()
    added = [(token, True) for token in SPECIAL_TOKENS] + [(token, False) for token in USER_DEFINED_TOKENS]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": REGEX},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token_id(token), token, special=special) for token, special in added],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(vocab)},
            "merges": [list(pair) if merges_as_pairs else " ".join(pair) for pair in merges],
        },
    }


@cache
def learn_bpe() -> tuple[list[str], list[tuple[str, str]]]:
    """Vocabulary and merges, learnt from CORPUS: the byte alphabet, then the most frequent pairs."""
    alphabet = byte_alphabet()
    words = Counter(tuple(alphabet[byte] for byte in f" {word}".encode()) for word in CORPUS.split())
    vocab = list(alphabet)
    merges: list[tuple[str, str]] = []
    while len(merges) < N_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocab.append("".join(best))
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return vocab, merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's ``bytes_to_unicode``)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
