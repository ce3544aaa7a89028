import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary, read_tokenizer, read_vocabulary
from acestep_gguf.errors import AceStepError, CheckpointError, UnsupportedModelError
from tests.support import tiny_llama3
from tests.support.tiny_checkpoints import Layout, TinyCheckpoint
from tests.support.tiny_tokenizer import token_id

TINY = TinyCheckpoint()


def read(folder: Path, *, vocab_size: int = TINY.vocab_size, image_token: str = "<image>") -> Vocabulary:
    return read_vocabulary(read_tokenizer(CheckpointFolder(folder)), vocab_size, token_id(image_token))


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint, with its tokenizer.json changed in place."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    return folder


def test_tokens_and_their_types(tiny: Path) -> None:
    vocabulary = read(tiny)
    assert vocabulary.pre == "qwen2"
    assert vocabulary.normalizer == "NFC"
    assert len(vocabulary.tokens) == len(vocabulary.types) == TINY.vocab_size
    assert vocabulary.tokens[:3] == ["Ā", "ā", "Ă"]
    assert vocabulary.types[0] == TokenType.NORMAL
    assert vocabulary.types[token_id("<image>")] == TokenType.CONTROL
    assert vocabulary.types[token_id("<tool_call>")] == TokenType.USER_DEFINED
    last = TINY.vocab_size - 1
    assert (vocabulary.tokens[last], vocabulary.types[last]) == (f"[PAD{last}]", TokenType.UNUSED)
    assert vocabulary.types.count(TokenType.UNUSED) == TINY.n_padding_rows
    assert vocabulary.control == {
        token: token_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
    }


@pytest.mark.parametrize("layout", ["v4", "v5"])
def test_merges_as_strings_and_as_pairs(tmp_path: Path, layout: Layout) -> None:
    vocabulary = read(TinyCheckpoint(layout=layout).write(tmp_path / "c"))
    assert len(vocabulary.merges) == 200
    assert all(merge.count(" ") == 1 for merge in vocabulary.merges)


def test_image_token_is_a_control_token_even_if_it_was_not_added_as_special(tiny: Path) -> None:
    vocabulary = read(tiny, image_token="<tool_call>")
    assert vocabulary.types[token_id("<tool_call>")] == TokenType.CONTROL
    assert "<tool_call>" in vocabulary.control


def test_stop_tokens_are_control_tokens_even_if_they_were_not_added_at_all(tiny: Path) -> None:
    vocabulary = read(tiny)
    stop_ids = (token_id("<tool_call>"), 0)
    stopping = vocabulary.with_control_tokens(stop_ids)
    assert [stopping.types[stop_id] for stop_id in stop_ids] == [TokenType.CONTROL] * 2
    assert stopping.control == vocabulary.control | {"<tool_call>": stop_ids[0], "Ā": 0}
    assert "<tool_call>" in vocabulary.user_defined
    assert "<tool_call>" not in stopping.user_defined
    assert (stopping.id("Ā"), stopping.id("<none>"), stopping.id(None)) == (0, None, None)


@pytest.mark.parametrize("normalizer", [None, {"type": "Sequence", "normalizers": []}])
def test_no_normalizer(tiny: Path, normalizer: Any) -> None:
    assert read(changed(tiny, lambda t: t.update(normalizer=normalizer))).normalizer is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="Unigram"), "Unigram"),
        (lambda t: t["model"].update(byte_fallback=True), "no token '<0x00>'"),
        (lambda t: t["model"].update(unk_token="<unk>"), "unk_token"),
        (lambda t: t.update(post_processor={"type": "BertProcessing"}), "post-processor"),
        (lambda t: t["model"].update(ignore_merges=True), "ignore_merges is True, that of llama.cpp's qwen2"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda t: t.update(normalizer="NFC"), "normalizer is NFC"),
        (lambda t: t.update(pre_tokenizer=None), "pre-tokenizer"),
        (lambda t: t.update(pre_tokenizer={"type": "ByteLevel"}), "pre-tokenizer"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{N}{1,3}"),
            "pre-tokenizer",
        ),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "pre-tokenizer"),
        (lambda t: t["added_tokens"][3].update(rstrip=True), "'<image>' strips spaces"),
    ],
)
def test_tokenizer_that_llama_cpp_would_not_follow_is_refused(
    tiny: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(changed(tiny, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model"), "no model"),
        (lambda t: t["model"].update(vocab=[]), "does not map tokens"),
        (lambda t: t["model"]["vocab"].update(new="5"), "does not map tokens"),
        (lambda t: t["model"]["vocab"].update(new=5), "same id"),
        (lambda t: t["model"]["vocab"].update(new=-1), "has the id -1"),
        (lambda t: t["model"]["vocab"].update(new=10**9), "has the id 1000000000"),
        (lambda t: t["model"]["vocab"].update({"a\0b": TINY.vocab_size - 1}), "NUL"),
        # A padding row's name must not be taken: llama.cpp aborts on two tokens of one text.
        (
            lambda t: t["model"]["vocab"].update({f"[PAD{TINY.vocab_size - 2}]": TINY.vocab_size - 1}),
            "same token",
        ),
        (lambda t: t["added_tokens"].append({"id": 0}), "added token"),
        (lambda t: t["added_tokens"][0].update(content=""), "added token"),
        (lambda t: t["added_tokens"][0].update(id=0), "have the same id"),
        (lambda t: t["added_tokens"].pop(3), "is not an added token"),
        (lambda t: t["model"].pop("merges"), "no merges"),
        (lambda t: t["model"]["merges"].append("one two three"), "is not a pair of tokens to merge"),
        (lambda t: t["model"]["merges"].append(["a", ""]), "is not a pair of tokens to merge"),
        (lambda t: t["model"]["merges"].append(["a", " b"]), "is not a pair of tokens to merge"),
        (lambda t: t["model"]["merges"].append(7), "is not a pair of tokens to merge"),
        (lambda t: t["model"]["merges"].append("Z Z"), "is not about tokens"),
    ],
)
def test_damaged_tokenizer_is_one_clear_error(
    tiny: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(changed(tiny, change))


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    return TinyCheckpoint(decoder="llama3", has_tower=False).write(tmp_path / "c")


def read_llama3(folder: Path) -> Vocabulary:
    return read_vocabulary(
        read_tokenizer(CheckpointFolder(folder)), TinyCheckpoint(decoder="llama3").vocab_size, None
    )


def test_llama_3s_tokenizer(llama3: Path) -> None:
    vocabulary = read_llama3(llama3)
    assert (vocabulary.model, vocabulary.pre, vocabulary.normalizer) == ("gpt2", "llama-bpe", None)
    assert vocabulary.bos == "<|begin_of_text|>"
    assert vocabulary.space_prefix == "never"
    assert vocabulary.tokens[tiny_llama3.token_id("<|eot_id|>")] == "<|eot_id|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["model"].update(ignore_merges=False),
            "ignore_merges is False, that of llama.cpp's llama-bpe",
        ),
        (lambda t: t["model"].pop("ignore_merges"), "ignore_merges is False"),
        (lambda t: t["post_processor"]["processors"].append({"type": "ByteLevel"}), "post-processor"),
        (lambda t: t["post_processor"]["processors"].reverse(), "post-processor"),
        *(
            (lambda t, word=word: t["added_tokens"][-1].update(content=word), "of plain text")
            for word in ("image", " image", "<image", "'s", "|||", "12", "\n")
        ),
    ],
)
def test_llama_3s_tokenizer_with_what_llama_cpp_would_not_follow(
    llama3: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_llama3(changed(llama3, change))


def test_an_added_token_that_is_also_a_word_of_the_vocabulary(llama3: Path) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"][-1].update(content="quartz", id=tokenizer["model"]["vocab"]["quartz"])

    assert "quartz" in read_llama3(changed(llama3, add)).user_defined


@pytest.fixture
def tekken(tmp_path: Path) -> Path:
    return TinyCheckpoint(decoder="tekken", has_tower=False).write(tmp_path / "c")


def read_tekken(folder: Path) -> Vocabulary:
    return read_vocabulary(
        read_tokenizer(CheckpointFolder(folder)), TinyCheckpoint(decoder="tekken").vocab_size, None
    )


def test_tekkens_tokenizer(tekken: Path) -> None:
    vocabulary = read_tekken(tekken)
    assert (vocabulary.model, vocabulary.pre, vocabulary.normalizer) == ("gpt2", "tekken", None)
    assert vocabulary.bos is None
    assert vocabulary.control["[INST]"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(ignore_merges=False), "ignore_merges is False"),
        (lambda t: t["model"]["merges"].reverse(), "not those of a Tekken vocabulary"),
        (lambda t: t["model"]["merges"].pop(), "not those of a Tekken vocabulary"),
        *(
            (
                lambda t, word=word: t["added_tokens"][-1].update(content=word, id=498),
                "plain text could become",
            )
            for word in ("image", "e\u0301", "<IMAGEé", "|||", "٣", "\n")
        ),
    ],
)
def test_tekkens_tokenizer_with_what_would_not_be_followed(
    tekken: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_tekken(changed(tekken, change))


def test_tekkens_tokenizer_without_a_byte(tekken: Path) -> None:
    def drop(tokenizer: dict[str, Any]) -> None:
        del tokenizer["model"]["vocab"]["Z"]

    with pytest.raises(CheckpointError, match="the byte 90 has no token"):
        read_tekken(changed(tekken, drop))


def test_more_tokens_than_rows_is_an_error(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="rows only"):
        read(tiny, vocab_size=300)


def test_missing_tokenizer_is_an_error(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(AceStepError, match=r"has no tokenizer\.json"):
        read(tiny)
