"""A tiny Tekken tokenizer: special tokens first, and all ways to make a token of two as merges."""

from typing import Any

from acestep_gguf.llama.tekken import SPLIT
from tests.support import tiny_tokenizer
from tests.support.tiny_tokenizer import added_token, learn_bpe

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "<SPECIAL_6>")
# What merges of the corpus do not make. The pattern cuts the last three: no text becomes these tokens.
WORDS = (" É", "ÉC", "éc", "कि", "aaa", "aaaa", "ไท", "\n\n", "//\n", "12", "lW", "x\n")


def n_tokens() -> int:
    """Tokens, without padding rows."""
    return len(SPECIAL_TOKENS) + len(vocabulary())


def token_id(token: str) -> int:
    """Id of an added token."""
    return SPECIAL_TOKENS.index(token)


def vocabulary() -> list[str]:
    """Tokens that are not added, in the letters of bytes; each is made of two before it."""
    tokens = dict.fromkeys(learn_bpe()[0])
    alphabet = tiny_tokenizer.byte_alphabet()
    for word in WORDS:
        letters = "".join(alphabet[byte] for byte in word.encode())
        tokens |= dict.fromkeys(letters[:end] for end in range(2, len(letters) + 1))
    return list(tokens)


def merges() -> list[tuple[str, str]]:
    """By the ids of the tokens that they make, then of their parts."""
    ids = {token: token_id for token_id, token in enumerate(vocabulary())}
    found = [
        (token, token[:middle], token[middle:])
        for token in ids
        for middle in range(1, len(token))
        if token[:middle] in ids and token[middle:] in ids
    ]
    return [
        (left, right) for _, left, right in sorted(found, key=lambda merge: [ids[part] for part in merge])
    ]


def tokenizer_json(*, merges_as_pairs: bool) -> dict[str, Any]:
    """tokenizer.json, as transformers' MistralConverter writes it."""
    tokenizer = tiny_tokenizer.tokenizer_json(merges_as_pairs=merges_as_pairs)
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = SPLIT
    tokenizer["model"] |= {
        "ignore_merges": True,
        "vocab": {token: number for number, token in enumerate([*SPECIAL_TOKENS, *vocabulary()])},
        "merges": [list(pair) if merges_as_pairs else " ".join(pair) for pair in merges()],
    }
    return tokenizer | {
        "added_tokens": [added_token(token_id(token), token, special=True) for token in SPECIAL_TOKENS],
        "normalizer": None,
    }
