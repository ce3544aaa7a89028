"""Texts and prompts next to the tokenizers library, for every way to put spaces before texts."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.schema import Bundle, SpacePrefix
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Model
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import user_message
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_sentencepiece import tokenizer_json, vocabulary

pytestmark = pytest.mark.parity

any_text = st.lists(st.sampled_from([*vocabulary(), " ", "\n", "é", "🎉", "<tool_call>"]), max_size=15)


@pytest.mark.parametrize("scheme", get_args(SpacePrefix))
def test_ids_are_those_of_tokenizers(scheme: SpacePrefix, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = TinyCheckpoint(decoder="llama", has_tower=False).write(tmp_path / "c")
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer_json(scheme)))
    folder = tmp_path / "b"
    bundle = convert_checkpoint(checkpoint, folder, ["F32"])
    reference = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with Model(folder / bundle.decoder().file) as model:
        prompts = PromptBuilder(Bundle.read(folder).prompt, model.tokenize, model.token_bytes)

        def check(text: str) -> None:
            reference.encode_special_tokens = True
            expected = reference.encode(text, add_special_tokens=False).ids
            assert prompts._text_tokens(text) == expected, repr(text)

        @settings(max_examples=300, deadline=None)
        @given(any_text.map("".join))
        def check_any(text: str) -> None:
            check(text)

        for text in TEXTS:
            check(text)
        check_any()

        # With a first token; nothing in it that a user wrote is a control token.
        reference.encode_special_tokens = False
        prompt = prompts.build([user_message("What is <tool_call> this?", []), user_message(" So", [])])
        rendered = "USER: What is <tool_call> this? USER:  So ASSISTANT:"
        assert prompt.text_tokens == reference.encode(rendered).ids
