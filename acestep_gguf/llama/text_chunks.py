"""A text in chunks of tokens, read and cut as llama-imatrix and llama-perplexity do it."""

import ctypes
from pathlib import Path
from typing import Final

from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.library import lib

N_ADDED = 2  # tokens at most that a vocabulary puts around a text
MAX_TEXT_BYTES: Final = 2**28


def read_text(path: Path) -> str:
    """The text of a file, without the line feed at its end.

    Raises:
        UsageError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise UsageError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB: give a part of it.")
        return data.decode().removesuffix("\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: convert it first.") from error


def text_chunks(model: Model, text: str, n_ctx: int) -> list[list[int]]:
    """Whole chunks of ``n_ctx`` tokens; a shorter rest is left out, and no text becomes a control token.

    Where the vocabulary has a token for the beginning of a text, each chunk begins with it, in the place of
    its first token.

    Raises:
        DecodeError: llama.cpp cannot tokenize the text.
    """
    vocab, data = lib.llama_model_get_vocab(model.pointer), text.encode()
    buffer = (ctypes.c_int32 * (len(data) + N_ADDED))()  # a token is a byte at least
    count = lib.llama_tokenize(vocab, data, len(data), buffer, len(buffer), True, False)
    if count < 0:
        raise DecodeError(f"llama.cpp cannot tokenize a text of {len(data)} bytes.")
    tokens = buffer[:count]
    chunks = [tokens[start : start + n_ctx] for start in range(0, count - n_ctx + 1, n_ctx)]
    if lib.llama_vocab_get_add_bos(vocab):
        chunks = [[lib.llama_vocab_bos(vocab), *chunk[1:]] for chunk in chunks]
    return chunks
