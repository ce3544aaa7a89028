"""Tekken's cuts and merges; tests/parity/test_byte_level_parity.py has the tokenizers library beside it."""

from itertools import pairwise
from pathlib import Path

import pytest
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.tekken import Tekken, byte_tokens, read_tekken, words
from acestep_gguf.quantize.gguf_layout import i32s, strings
from tests.support import tiny_tekken
from tests.support.crossing_tokens import vocabulary
from tests.support.gguf_files import rewrite
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_tokenizer import byte_alphabet

TOKENS = {token: number for number, token in enumerate(tiny_tekken.vocabulary())}
RANKS = {pair: rank for rank, pair in enumerate(tiny_tekken.merges())}
ALPHABET = byte_alphabet()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tekken")
    checkpoint = TinyCheckpoint(decoder="tekken", has_tower=False).write(folder / "c")
    return folder / "b" / convert_checkpoint(checkpoint, folder / "b", ["F32"]).decoder().file


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("HELLOworld HTTPServer", ["HELLOworld", " HTTPServer"]),
        ("helloWorld éCOLE", ["hello", "World", " é", "COLE"]),
        ("ÉCOLEéa Ωμέγα", ["ÉCOLEéa", " Ωμέγα"]),
        ("हिन्दी ไทย A\u030ab", ["हिन्दी", " ไทย", " A\u030ab"]),
        ("\u0301x don't", ["\u0301x", " don", "'t"]),
        ("日本語ab ʰǅX", ["日本語ab", " ʰ", "ǅX"]),
        ("12 Ⅷ", ["1", "2", " ", "Ⅷ"]),
        ("a//\n/b  ...\r\n", ["a", "//\n/", "b", " ", " ...\r\n"]),
        (" \n\n  x\t\u3000 y", [" \n\n", " ", " x", "\t\u3000", " y"]),
        ("x   ", ["x", "   "]),
        ("\x1c\x00 \ufeff", ["\x1c\x00", " \ufeff"]),
        # New in Unicode 15 and 16: upper case, lower case, a mark, a number.
        (
            "\ua7cba\ua7cdb\U00010d50\ua7cdB a\u0cf3\U0001e4f0",
            ["\ua7cba\ua7cdb", "\U00010d50\ua7cd", "B", " a\u0cf3", "\U0001e4f0"],
        ),
    ],
)
def test_words(text: str, cut: list[str]) -> None:
    assert [*words(text)] == cut


@given(st.text())
def test_words_are_all_of_the_text(text: str) -> None:
    assert "".join(words(text)) == text


def naively(word: str) -> list[int]:
    """Merge after merge, by their ranks, as the definition of BPE says."""
    parts = [ALPHABET[byte] for byte in word.encode()]
    if "".join(parts) in TOKENS:
        return [TOKENS["".join(parts)]]
    while found := [(RANKS[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in RANKS]:
        _, place = min(found)
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return [TOKENS[part] for part in parts]


pieces = st.sampled_from(
    ["a", "aa", "é", "É", "éc", "कि", "ि", "the", "picture", " ", "x", "\n", "/"]
) | st.text(max_size=2)


@settings(max_examples=500)
@given(st.lists(pieces, max_size=12).map("".join))
def test_merges(text: str) -> None:
    expected = [token for word in words(text) for token in naively(word)]
    assert Tekken(byte_tokens(TOKENS)).encode(text) == expected


def test_a_model_tokenizes_so(decoder: Path) -> None:
    n_special = len(tiny_tekken.SPECIAL_TOKENS)
    with Model(decoder) as model:
        for text in TEXTS:
            tokens = model.tokenize(text)
            assert tokens == [n_special + token for word in words(text) for token in naively(word)]
            assert b"".join(map(model.token_bytes, tokens)).decode() == text
        # Here llama.cpp cuts otherwise.
        assert model._tokenize("éc कि") != model.tokenize("éc कि")


def test_long_words_take_no_long_time(decoder: Path) -> None:
    with Model(decoder) as model:
        assert len(model.tokenize("a" * 20_001)) == 5_001


@pytest.mark.parametrize(("token", "problem"), [("日", "latin-1"), ("AB", "the byte 0 has no token")])
def test_a_damaged_vocabulary(decoder: Path, tmp_path: Path, token: str, problem: str) -> None:
    tokens, _, types = vocabulary(decoder)
    tokens[len(tiny_tekken.SPECIAL_TOKENS)] = token
    assert types[len(tiny_tekken.SPECIAL_TOKENS)] == TokenType.NORMAL
    metadata = {"tokenizer.ggml.tokens": strings(tokens)}
    with pytest.raises(BundleError, match=problem):
        read_tekken(read_gguf_header(rewrite(decoder, tmp_path / "d.gguf", metadata=metadata)))
    metadata = {"tokenizer.ggml.token_type": i32s(types[:-1])}
    with pytest.raises(BundleError, match="no vocabulary"):
        read_tekken(read_gguf_header(rewrite(decoder, tmp_path / "e.gguf", metadata=metadata)))
