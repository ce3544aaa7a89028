"""Scores that llama.cpp merges by, next to the merges of tokenizer.json, applied in the plainest way."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.sentencepiece import BYTE_TOKENS, scores, space_prefix
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary, read_tokenizer, read_vocabulary
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from acestep_gguf.llama.binding import Model
from tests.support.texts import TEXTS
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_sentencepiece import SPACE, merges, token_id, tokenizer_json, vocabulary

TINY = TinyCheckpoint(decoder="llama", has_tower=False)
RANKS = {pair: rank for rank, pair in enumerate(merges())}
IDS = {token: token_id for token_id, token in enumerate(vocabulary())}


def ids_by_merges(text: str) -> list[int]:
    """BPE as tokenizers does it: the pair of the lowest rank first, from the left; then bytes."""
    symbols = list(text.replace(" ", SPACE))
    while pairs := [(RANKS[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in RANKS]:
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [
        token_id
        for symbol in symbols
        for token_id in ([IDS[symbol]] if symbol in IDS else (IDS[BYTE_TOKENS[b]] for b in symbol.encode()))
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("llama")
    bundle = convert_checkpoint(TINY.write(folder / "c"), folder / "b", ["F32"])
    with Model(folder / "b" / bundle.decoder().file) as opened:
        yield opened


@pytest.mark.parametrize("text", [text for text in TEXTS if "<tool_call>" not in text])  # an added token
def test_nasty_texts(model: Model, text: str) -> None:
    assert model.tokenize(text) == ids_by_merges(text)


@pytest.mark.parametrize("length", range(1, 70))
def test_runs_of_spaces(model: Model, length: int) -> None:
    """Their tokens share a score; merges prefer the longer left part."""
    for text in (" " * length, f"the{' ' * length}word"):
        assert model.tokenize(text) == ids_by_merges(text)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.sampled_from([*vocabulary(), " ", "\n", "\t", "é", "日", "🎉", "q"]), max_size=20).map(
        "".join
    )
)
def test_any_text(model: Model, text: str) -> None:
    assert model.tokenize(text) == ids_by_merges(text)


def test_control_tokens_typed_by_a_user_are_text(model: Model) -> None:
    for token in ("<s>", "</s>", "<unk>", "<image>", "<pad>"):
        assert token_id(token) not in model.tokenize(token)
    assert IDS["<0x41>"] not in model.tokenize("<0x41>")


def test_bytes_of_tokens(model: Model) -> None:
    text = "the picture é 🎉\n"
    assert b"".join(map(model.token_bytes, model.tokenize(text))).decode() == text
    assert model.token_bytes(token_id("</s>")) == b""


def read(folder: Path) -> Vocabulary:
    return read_vocabulary(read_tokenizer(CheckpointFolder(folder)), TINY.vocab_size, None)


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TINY.write(tmp_path / "c")


def test_types(folder: Path) -> None:
    read_ = read(folder)
    assert (read_.model, read_.pre, read_.bos, read_.space_prefix) == ("llama", "default", "<s>", "first")
    assert read_.merges == []
    assert {read_.types[token_id(token)] for token in ("<unk>", "<s>", "</s>", "<image>", "<pad>")} == {
        TokenType.CONTROL
    }
    assert {read_.types[IDS[token]] for token in BYTE_TOKENS} == {TokenType.BYTE}
    assert read_.types[token_id("<tool_call>")] == TokenType.USER_DEFINED
    assert read_.types[-1] == TokenType.UNUSED


@pytest.mark.parametrize("scheme", ["never", "first", "always", "prepend"])
def test_space_prefix(scheme: Any) -> None:
    tokenizer = tokenizer_json(scheme)
    assert space_prefix(tokenizer["normalizer"], tokenizer["pre_tokenizer"]) == scheme


def test_space_prefix_of_a_normalizer_alone() -> None:
    assert space_prefix({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, None) == "never"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(pre_tokenizer=None), "are not Llama's"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "are not Llama's"),
        (lambda t: t["pre_tokenizer"].update(split=True), "are not Llama's"),
        (lambda t: t["pre_tokenizer"].update(prepend_scheme="sometimes"), "are not Llama's"),
        (lambda t: t["post_processor"]["single"].append({"SpecialToken": {"id": "</s>"}}), "post-processor"),
        (lambda t: t.update(post_processor={"type": "RobertaProcessing"}), "post-processor"),
        (lambda t: t["model"].update(dropout=0.1), "dropout"),
        # llama.cpp merges whatever makes a token, whether or not there is a merge.
        (lambda t: t["model"]["merges"].pop(0), "does not make '▁t' of '▁' and 't'"),
    ],
)
def test_what_llama_cpp_would_not_follow_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(changed(folder, change))


def test_a_byte_without_a_token_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'<0x41>'"):
        read(changed(folder, lambda t: t["model"]["vocab"].pop("<0x41>")))


NORMAL, CONTROL = int(TokenType.NORMAL), int(TokenType.CONTROL)


def test_merges_that_interleave_are_refused() -> None:
    tokens = ["a", "b", "c", "ab", "abc", "bc", "ca", "bca"]
    ways = ["a b", "ab c", "b c", "a bc", "c a", "bc a", "b ca"]
    assert scores(tokens, [NORMAL] * 8, ["a b", "b c", "ab c", "a bc", "c a", "bc a", "b ca"])
    with pytest.raises(UnsupportedModelError, match="interleave"):
        scores(tokens, [NORMAL] * 8, ways)


def test_runs_of_one_character_may_interleave() -> None:
    assert scores(["a", "aa", "aaa"], [NORMAL] * 3, ["aa a", "a aa", "a a"]) == [-1e9, -1.0, 0.0]
    assert scores(["a", "aa", "aaa"], [NORMAL] * 3, ["aa a", "a a", "a aa"])[1:] == [0.0, 0.0]


def test_control_tokens_that_text_would_become_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="does not make '<s>' of '<' and 's>'"):
        scores(["<", "s>", "<s>"], [NORMAL, NORMAL, CONTROL], ["< s>"])


def test_missing_bos_token_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None}))
    with pytest.raises(CheckpointError, match="bos_token"):
        convert_checkpoint(folder, folder.parent / "b", ["F32"])
