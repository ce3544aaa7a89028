"""A tiny byte-level BPE tokenizer in Llama 3's format: tiny_tokenizer's, with words that no merges make."""

from typing import Any

from tests.support import tiny_tokenizer
from tests.support.tiny_tokenizer import added_token, learn_bpe

REGEX = tiny_tokenizer.REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
WORDS = (" zebra", "quartz", " !?", "é", "123")
SPECIAL_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<image>", "<pad>",
)  # fmt: skip
USER_DEFINED_TOKENS = ("<tool_call>",)


def words() -> tuple[str, ...]:
    """Tokens of the vocabulary, in the alphabet of bytes, that are no product of merges."""
    alphabet = tiny_tokenizer.byte_alphabet()
    return tuple("".join(alphabet[byte] for byte in word.encode()) for word in WORDS)


def vocabulary() -> tuple[str, ...]:
    """Tokens that are not added."""
    return (*learn_bpe()[0], *words())


def n_tokens() -> int:
    """Tokens, without padding rows."""
    return len(vocabulary()) + len(SPECIAL_TOKENS) + len(USER_DEFINED_TOKENS)


def token_id(token: str) -> int:
    """Id of an added token."""
    return len(vocabulary()) + (*SPECIAL_TOKENS, *USER_DEFINED_TOKENS).index(token)


def tokenizer_json(*, merges_as_pairs: bool) -> dict[str, Any]:
    """tokenizer.json, in Llama 3's format."""
    tokenizer = tiny_tokenizer.tokenizer_json(merges_as_pairs=merges_as_pairs)
    bos = "<|begin_of_text|>"
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, *second],
        "special_tokens": {bos: {"id": bos, "ids": [token_id(bos)], "tokens": [bos]}},
    }
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = REGEX
    model = {"ignore_merges": True, "vocab": {token: index for index, token in enumerate(vocabulary())}}
    return tokenizer | {
        "added_tokens": [
            added_token(token_id(token), token, special=token in SPECIAL_TOKENS)
            for token in SPECIAL_TOKENS + USER_DEFINED_TOKENS
        ],
        "normalizer": None,
        "post_processor": {"type": "Sequence", "processors": [tokenizer["post_processor"], template]},
        "model": tokenizer["model"] | model,
    }
