"""Texts next to the tokenizers library, for every byte-level tokenizer that is read."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Model
from acestep_gguf.prompt.builder import PromptBuilder
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint
from tests.support.tiny_llama3 import WORDS

pytestmark = pytest.mark.parity

PARTS = (
    *WORDS, "zebra", "picture", " the", "I'LL", "'s", "1", "12345", " ", "  ", "\n", "\r\n", "\t", "\u00a0",
    "\u3000", "e\u0301", "日本語", "🎉", "👩\u200d🚀", "½", "٣", "f(x)=", "!?",
    "<tool_call>", "<|eot_id|>", "<|im_end|>",
)  # fmt: skip
# Characters that are new in Unicode 16 are none to llama.cpp.
LETTERS = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cn", "Cs"])
any_text = st.lists(st.sampled_from(PARTS) | LETTERS, max_size=12)


@pytest.mark.parametrize("decoder", ["qwen2", "llama3"])
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

        @settings(max_examples=1000, deadline=None)
        @given(any_text.map("".join).filter(lambda text: "\0" not in text))
        def check_any(text: str) -> None:
            check(text)

        for text in TEXTS:
            check(text)
        check_any()
