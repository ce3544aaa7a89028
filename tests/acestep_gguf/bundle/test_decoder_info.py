from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.bundle.gguf_header import GGUFHeader, Skipped, StringArray, read_gguf_header
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError, UnsupportedModelError
from tests.support.tiny_checkpoints import TinyCheckpoint


@pytest.fixture(scope="session")
def header(decoder_file: Path) -> GGUFHeader:
    return read_gguf_header(decoder_file)


class Strings(StringArray):
    """A string array that was never in a file."""

    def __init__(self, strings: list[bytes]) -> None:
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    def read(self) -> list[bytes]:
        return self._strings


def changed(header: GGUFHeader, **entries: Any) -> GGUFHeader:
    metadata = dict(header.metadata)
    for name, value in entries.items():
        key = next((key for key in metadata if key.replace(".", "_") == name), name.replace("_", ".", 1))
        metadata[key] = value
    return replace(header, metadata={key: value for key, value in metadata.items() if value is not None})


def test_the_shape_of_a_tiny_decoder(header: GGUFHeader) -> None:
    info = decoder_info(header)
    assert (info.architecture, info.embedding_length, info.block_count) == ("qwen2", 256, 2)
    assert (info.head_count, info.head_count_kv, info.context_length) == (4, 2, 512)
    assert info.bits_per_weight == 32
    assert info.n_params == header.n_params


HEAD_SIZES = ("qwen2_attention.key_length", "qwen2_attention.value_length", "qwen2_rope_dimension_count")
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "no architecture": {"general_architecture": None},
    "architecture is a number": {"general_architecture": 5},
    "no context length": {"qwen2_context_length": None},
    "context length is true": {"qwen2_context_length": True},
    "negative context length": {"qwen2_context_length": -1},
    "absurd context length": {"qwen2_context_length": 2**40},
    "no blocks": {"qwen2_block_count": 0},
    "too many blocks": {"qwen2_block_count": 513},
    "no heads": {"qwen2_attention_head_count": 0},
    "heads that do not divide": {"qwen2_attention_head_count": 3},
    "heads of odd size": {"qwen2_attention_head_count": 256},
    "KV heads that do not divide": {"qwen2_attention_head_count_kv": 3},
    "another rope size": {"qwen2_rope_dimension_count": 576},
    "heads of keys of another size": {"qwen2_attention.key_length": 32},
    "heads of values of another size": {"qwen2_attention.value_length": 32},
    "heads of odd size by themselves": dict.fromkeys(HEAD_SIZES, 63),
    "heads of no size": dict.fromkeys(HEAD_SIZES, 0),
    "heads of a negative size": dict.fromkeys(HEAD_SIZES, -2),
    "experts": {"qwen2_expert_count": 8},
    "arrays of arrays, which llama.cpp cannot skip": {"foreign_key": Skipped(is_nested=True)},
    "finetuned is a number": {"qwen2_rope.scaling.finetuned": 1},
    "block count is a fraction": {"qwen2_block_count": 2.0},
    "rope base is an integer": {"qwen2_rope_freq_base": 10_000},
    "the name is a number": {"general_name": 5},
    "the name is not UTF-8": {"general_name": Skipped(is_nested=False)},
    "a flag is a number": {"tokenizer_ggml_add_bos_token": 0},
    "text for a number": {"qwen2_rope_freq_base": "large"},
    "rope base not finite": {"qwen2_rope_freq_base": float("nan")},
    "unknown rope scaling": {"qwen2_rope.scaling.type": "foo"},
    "rope scaling of a number": {"qwen2_rope.scaling.type": 1},
    "rope scaling by zero": {"qwen2_rope.scaling.factor": 0.0},
    "negative attention factor": {"qwen2_rope.scaling.attn_factor": -1.0},
    "rope base zero": {"qwen2_rope_freq_base": 0.0},
    "no epsilon": {"qwen2_attention_layer_norm_rms_epsilon": None},
    "epsilon zero": {"qwen2_attention_layer_norm_rms_epsilon": 0.0},
    "negative epsilon": {"qwen2_attention_layer_norm_rms_epsilon": -1.0},
    "another vocabulary": {"tokenizer_ggml_tokens": Strings([b"a", b"b"])},
    "no vocabulary": {"tokenizer_ggml_tokens": None},
}  # fmt: skip


@pytest.mark.parametrize("entries", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_found_before_llama_cpp_sees_them(
    header: GGUFHeader, entries: dict[str, Any]
) -> None:
    with pytest.raises(BundleError):
        decoder_info(changed(header, **entries))


@pytest.mark.parametrize(
    "name", ["expert_count", "rope.scale_linear", "attention.causal", "nextn_predict_layers"]
)
def test_keys_that_make_another_model_are_refused(header: GGUFHeader, name: str) -> None:
    with pytest.raises(BundleError, match="makes it another model"):
        decoder_info(replace(header, metadata={**header.metadata, f"qwen2.{name}": 1}))


@pytest.mark.parametrize(
    "value",
    [
        1,
        -1.5,
        float("nan"),
        True,
        "text",
        Skipped(is_nested=False),
        StringArray(b"", 0, 0),
        memoryview(b"abc"),
    ],
)
@pytest.mark.parametrize(
    "key",
    ["mradermacher.quantized_by", "qwen2.made_up", "llama.block_count", "general.tags", "split.made_up"],
)
def test_keys_that_llama_cpp_skips_may_hold_anything(header: GGUFHeader, key: str, value: Any) -> None:
    assert decoder_info(replace(header, metadata={**header.metadata, key: value})) == decoder_info(header)


@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
def test_rope_scaling_of_every_known_type(header: GGUFHeader, scaling: str) -> None:
    decoder_info(changed(header, **{"qwen2_rope.scaling.type": scaling, "qwen2_rope.scaling.factor": 4.0}))


def test_other_architectures_are_named(header: GGUFHeader) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'gemma'.*qwen2, qwen3, llama"):
        decoder_info(changed(header, general_architecture="gemma"))


def test_the_vocabulary_fits_the_bundle(header: GGUFHeader, tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    check_vocabulary(header, bundle.prompt, bundle.image)
    with pytest.raises(BundleError, match="width"):
        check_vocabulary(header, bundle.prompt, replace(bundle.tower()[1], n_embd=128))
    shifted = {text: token + 1 for text, token in bundle.prompt.control_tokens.items()}
    for tokens in (shifted, {**shifted, "<image>": 10**9}, {**shifted, "<image>": -1}):
        with pytest.raises(BundleError, match="added token"):
            check_vocabulary(header, replace(bundle.prompt, control_tokens=tokens), bundle.image)


VOCABULARIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a token twice": lambda tokens: [*tokens[:-1], tokens[0]],
    "an empty token": lambda tokens: [b"", *tokens[1:]],
    "a token with a null character": lambda tokens: [b"a\0b", *tokens[1:]],
    "a token too few": lambda tokens: tokens[:-1],
}


@pytest.mark.parametrize("change", VOCABULARIES.values(), ids=VOCABULARIES)
def test_vocabularies_on_which_llama_cpp_ends_the_process(
    header: GGUFHeader, tiny_bundle: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    bundle = Bundle.read(tiny_bundle)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    damaged = changed(header, tokenizer_ggml_tokens=Strings(change(tokens.read())))
    with pytest.raises(BundleError):
        check_vocabulary(damaged, bundle.prompt, bundle.image)


@pytest.mark.parametrize(
    "entries",
    [
        {"tokenizer_ggml_model": "llama"},
        {"tokenizer_ggml_token_type": None},
        {"tokenizer_ggml_eos_token_id": 10**6},
        {"tokenizer_ggml_eos_token_id": "text"},
    ],
)
def test_tokenizer_metadata(header: GGUFHeader, tiny_bundle: Path, entries: dict[str, Any]) -> None:
    bundle = Bundle.read(tiny_bundle)
    with pytest.raises(BundleError):
        check_vocabulary(changed(header, **entries), bundle.prompt, bundle.image)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[GGUFHeader, Bundle]:
    folder = tmp_path_factory.mktemp("llama")
    checkpoint = TinyCheckpoint(decoder="llama", has_tower=False).write(folder / "c")
    bundle = convert_checkpoint(checkpoint, folder / "b", ["F32"])
    return read_gguf_header(folder / "b" / bundle.decoder().file), bundle


@pytest.mark.parametrize("head_dim", [None, 32])
def test_a_qwen3_decoder_has_heads_of_a_size_of_their_own(tmp_path: Path, head_dim: int | None) -> None:
    tiny = TinyCheckpoint(decoder="qwen3", has_tower=False, head_dim=head_dim)
    bundle = convert_checkpoint(tiny.write(tmp_path / "c"), tmp_path / "b", ["F32"])
    header = read_gguf_header(tmp_path / "b" / bundle.decoder().file)
    info = decoder_info(header)
    assert (info.architecture, info.embedding_length, info.head_count) == ("qwen3", 256, 4)
    assert header.metadata["qwen3.attention.key_length"] == header.metadata["qwen3.rope.dimension_count"]
    without = {key: value for key, value in header.metadata.items() if not key.endswith("_length")}
    lengths = {key: value for key, value in header.metadata.items() if key.endswith("_length")}
    for key in ("key", "value"):
        del lengths[f"qwen3.attention.{key}_length"]
    with pytest.raises(BundleError, match=r"rope\.dimension_count is (128|32), not the size of a head"):
        decoder_info(replace(header, metadata=without | lengths))


def test_a_llama_decoder(llama: tuple[GGUFHeader, Bundle]) -> None:
    header, bundle = llama
    assert decoder_info(header).architecture == "llama"
    check_vocabulary(header, bundle.prompt, None)


@pytest.mark.parametrize(
    ("replaced", "problem"),
    [
        ({b"<0x41>": b"<0xZZ>"}, "a byte has no token"),
        ({b"\xe2\x96\x81the": b"\xe2\x96\x81\n"}, "new line"),
    ],
)
def test_sentencepiece_vocabularies_that_llama_cpp_would_stumble_over(
    llama: tuple[GGUFHeader, Bundle], replaced: dict[bytes, bytes], problem: str
) -> None:
    header, bundle = llama
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    assert set(replaced) <= set(tokens.read())
    others = Strings([replaced.get(token, token) for token in tokens.read()])
    with pytest.raises(BundleError, match=problem):
        check_vocabulary(changed(header, tokenizer_ggml_tokens=others), bundle.prompt, None)


@pytest.mark.parametrize("scores", [None, memoryview(b""), "text"])
def test_sentencepiece_vocabulary_without_scores(llama: tuple[GGUFHeader, Bundle], scores: Any) -> None:
    header, bundle = llama
    with pytest.raises(BundleError, match="score"):
        check_vocabulary(changed(header, tokenizer_ggml_scores=scores), bundle.prompt, None)
