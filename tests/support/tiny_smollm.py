"""A tiny byte-level BPE tokenizer in SmolLM2's format, with SmolVLM's tokens around pictures and tiles."""

from typing import Any

from tests.support import tiny_tokenizer
from tests.support.tiny_tokenizer import added_token, learn_bpe

NEWLINE = "\u010a"  # as byte-level BPE spells it
N_ROWS = 6
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, N_ROWS + 1) for column in range(1, N_ROWS + 1)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)


def n_tokens() -> int:
    """Tokens, without padding rows."""
    return len(SPECIAL_TOKENS) + len(learn_bpe()[0]) + 1


def token_id(token: str) -> int:
    """Id of an added token; they come behind the others."""
    return len(learn_bpe()[0]) + 1 + SPECIAL_TOKENS.index(token)


def tokenizer_json(*, merges_as_pairs: bool) -> dict[str, Any]:
    """tokenizer.json, in SmolLM2's format: digits by themselves, two line ends as one token."""
    tokenizer = tiny_tokenizer.tokenizer_json(merges_as_pairs=merges_as_pairs)
    vocab, merges = learn_bpe()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    lines = (NEWLINE, NEWLINE)
    tokenizer["model"] |= {
        "vocab": {token: index for index, token in enumerate([*vocab, 2 * NEWLINE])},
        "merges": [list(pair) if merges_as_pairs else " ".join(pair) for pair in [*merges, lines]],
    }
    return tokenizer | {
        "added_tokens": [added_token(token_id(token), token, special=True) for token in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
    }
