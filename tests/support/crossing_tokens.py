"""A tiny decoder whose ids tell how its tokenizer cuts text into words: some tokens would cross cuts."""

from pathlib import Path

from gguf import TokenType

from acestep_gguf.bundle.gguf_header import StringArray, read_gguf_header
from acestep_gguf.quantize.gguf_layout import i32s, string, strings
from tests.support.gguf_files import rewrite

# Digits, a sign before a word, signs and new lines, contractions, spaces. Ġ is a space, Ċ a new line.
MERGES = ("1 1", "11 1", "( t", ". Ċ", "Ċ Ċ", "' S", "Ġ 1", "Ġ Ġ", "Ġ (", "Ġ Ċ")


def vocabulary(decoder: Path) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and types in the metadata of ``decoder``."""
    metadata = read_gguf_header(decoder).metadata
    tokens, merges = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, StringArray)
    assert isinstance(merges, StringArray)
    assert isinstance(types, memoryview)
    return [token.decode() for token in tokens.read()], [merge.decode() for merge in merges.read()], [*types]


def with_crossing_tokens(decoder: Path, out: Path, pre: str) -> Path:
    """Write ``decoder`` as ``out``, with tokens of MERGES in the place of padding, and tokenizer.ggml.pre."""
    tokens, merges, types = vocabulary(decoder)
    unused = (number for number, kind in enumerate(types) if kind == TokenType.UNUSED)
    for merge, number in zip(MERGES, unused, strict=False):
        tokens[number], types[number] = merge.replace(" ", ""), TokenType.NORMAL
    metadata = {
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": i32s(types),
        "tokenizer.ggml.merges": strings([*merges, *MERGES]),
    }
    return rewrite(decoder, out, metadata=metadata)
