"""Texts next to the tokenizers library, for every byte-level tokenizer that is read."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.tekken import KINDS
from acestep_gguf.prompt.builder import PromptBuilder
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint
from tests.support.tiny_llama3 import WORDS

pytestmark = pytest.mark.parity

PARTS = (
    *WORDS, "zebra", "picture", " the", "I'LL", "'s", "1", "12345", " ", "  ", "\n", "\r\n", "\t", "\u00a0",
    "\u3000", "e\u0301", "日本語", "🎉", "👩\u200d🚀", "½", "٣", "f(x)=", "!?",
    "<tool_call>", "<|eot_id|>", "<|im_end|>", "ÉCole", "aaaaa", "कि", "ไทย", "ǅ", "ʰ", "//", "[INST]", "<s>",
)  # fmt: skip
# Characters that are new in Unicode 16 are none to llama.cpp.
LETTERS = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cn", "Cs"])


@pytest.mark.parametrize("decoder", ["qwen2", "llama3", "tekken"])
def test_ids_are_those_of_tokenizers(decoder: Decoder, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny = TinyCheckpoint(decoder=decoder, has_tower=False)
    checkpoint, folder = tiny.write(tmp_path / "c"), tmp_path / "b"
    bundle = convert_checkpoint(checkpoint, folder, ["F32"])
    reference = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    reference.encode_special_tokens = True
    with Model(folder / bundle.decoder().file) as model:
        prompts = PromptBuilder(Bundle.read(folder).prompt, model.tokenize, model.token_bytes)

        def check(text: str) -> None:
            expected = reference.encode(text, add_special_tokens=False).ids
            assert prompts._text_tokens(text) == expected, repr(text)

        characters = st.characters(exclude_categories=["Cs"]) if decoder == "tekken" else LETTERS

        @settings(max_examples=1000, deadline=None)
        @given(
            st.lists(st.sampled_from(PARTS) | characters, max_size=12)
            .map("".join)
            .filter(lambda text: "\0" not in text)
        )
        def check_any(text: str) -> None:
            check(text)

        for text in TEXTS:
            check(text)
        check_any()


def test_characters_are_of_the_kinds_that_tokenizers_takes_them_for() -> None:
    from tokenizers import Regex, pre_tokenizers

    patterns = {"U": r"[\p{Lu}\p{Lt}]", "o": r"[\p{Lm}\p{Lo}]"}
    patterns |= {"l": r"\p{Ll}", "m": r"\p{M}", "n": r"\p{N}", "s": r"\s"}
    blocks = ["".join(map(chr, range(start, start + 0x800))) for start in range(0, 0x110000, 0x800)]
    del blocks[0xD800 // 0x800]  # surrogates
    found = dict.fromkeys("".join(blocks), "-")
    for kind, pattern in patterns.items():
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        for block in blocks:
            found |= {character: kind for character, _ in split.pre_tokenize_str(block)}
    kinds = {"r": "s", " ": "s", "/": "-"}
    ours = {character: kinds.get(KINDS[ord(character)], KINDS[ord(character)]) for character in found}
    # A Python with a later Unicode than tokenizers' will know more characters.
    assert [hex(ord(character)) for character in found if ours[character] != found[character]] == []
