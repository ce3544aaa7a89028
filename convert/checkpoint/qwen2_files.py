"""Qwen2's tokenizer from vocab.json and merges.txt, for folders without a tokenizer.json."""

import re
from typing import Any, Final

from acestep_gguf.convert.checkpoint.folder import TOKENIZER_CONFIG_FILE, CheckpointFolder
from acestep_gguf.errors import CheckpointError

VOCAB_FILE: Final = "vocab.json"
MERGES_FILE: Final = "merges.txt"
ADDED_TOKENS_FILE: Final = "added_tokens.json"
TOKEN_ID: Final = re.compile("[0-9]{1,8}")
TOKENIZER_CLASSES: Final = ("Qwen2Tokenizer", "Qwen2TokenizerFast")

SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def tokenizer_from_files(folder: CheckpointFolder) -> dict[str, Any] | None:
    """What tokenizer.json would say, as transformers' ``Qwen2Converter`` makes it; None without the files.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    vocab, merges = folder.read_json(VOCAB_FILE), folder.read_text(MERGES_FILE)
    if (
        vocab is None
        or merges is None
        or folder.tokenizer_config.get("tokenizer_class") not in TOKENIZER_CLASSES
    ):
        return None
    pre_tokenizers = [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    return {
        "added_tokens": _added_tokens(folder),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(merges)},
    }


def _merges(text: str) -> list[str]:
    """The lines, but for the first if it names a version; others that begin with # are merges."""
    lines = [line.strip() for line in text.split("\n")]
    if lines[0].startswith("#version:"):
        del lines[0]
    return [line for line in lines if line]


def _added_tokens(folder: CheckpointFolder) -> list[dict[str, Any]]:
    """Those of tokenizer_config.json, or of added_tokens.json, which does not say which are special."""
    described = folder.tokenizer_config.get("added_tokens_decoder")
    if described is None:
        special = _special(folder)
        ids = folder.read_json(ADDED_TOKENS_FILE) or {}
        return [{"id": number, "content": text, "special": text in special} for text, number in ids.items()]
    if not isinstance(described, dict) or not all(
        TOKEN_ID.fullmatch(number) and isinstance(token, dict) for number, token in described.items()
    ):
        raise CheckpointError(
            f"{TOKENIZER_CONFIG_FILE} is damaged (added_tokens_decoder maps no ids to tokens): get it again."
        )
    return [{"special": False, **token, "id": int(number)} for number, token in described.items()]


def _special(folder: CheckpointFolder) -> set[str]:
    named = folder.tokenizer_config
    more = named.get("additional_special_tokens") or []
    values = [value for key, value in named.items() if key.endswith("_token")]
    values += more if isinstance(more, list) else []
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {text for text in texts if isinstance(text, str)}
