"""What a decoder's GGUF header says about the model, checked.

llama.cpp ends the process on some contradictions in a file (an assertion), so they are found here first.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import isfinite
from typing import Final, TypeVar

from acestep_gguf.bundle.gguf_header import GGUFHeader, Skipped, StringArray
from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.errors import BundleError, UnsupportedModelError

ARCHITECTURES: Final = ("qwen2", "qwen3", "llama")
MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS
NORMAL: Final = 1  # LLAMA_TOKEN_TYPE_NORMAL
CONTROL: Final = 3  # LLAMA_TOKEN_TYPE_CONTROL
USER_DEFINED: Final = 4  # LLAMA_TOKEN_TYPE_USER_DEFINED

# What SentencePiece falls back to where a character has no token.
BYTE_TOKENS: Final = frozenset(f"<0x{byte:02X}>".encode() for byte in range(256))

T = TypeVar("T", int, float, str)

# Types of the keys that llama.cpp reads, those of hyperparameters without the architecture's prefix. Keys of
# other names are nobody's business: many tools leave their own.
_HYPERPARAMETERS: Final[Mapping[str, type]] = {
    **dict.fromkeys(
        (
            "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
            "attention.head_count", "attention.head_count_kv", "attention.key_length",
            "attention.value_length", "rope.dimension_count", "rope.scaling.original_context_length",
        ),
        int,
    ),
    **dict.fromkeys(
        (
            "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor",
            "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
            "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
        ),
        float,
    ),
    "rope.scaling.type": str,
    "rope.scaling.finetuned": bool,
}  # fmt: skip
_OTHER_KEYS: Final[Mapping[str, type]] = {
    **dict.fromkeys(
        ("general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"), str
    ),
    **dict.fromkeys(
        (
            "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
            "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces",
        ),
        bool,
    ),
}  # fmt: skip
# With these, llama.cpp builds another model than the one that was converted.
_REFUSED_HYPERPARAMETERS: Final = frozenset(
    {
        "embedding_length_out", "attention.causal", "attention.key_length_swa", "attention.value_length_swa",
        "pooling_type", "classifier.pooling_type", "classifier.output_labels", "nextn_predict_layers",
        "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count",
        "rope.dimension_count_swa", "rope.scale_linear", "rope.scaling.alpha",
    }
)  # fmt: skip

# Tensors that llama.cpp multiplies matrices with, or takes rows of, without their block and ".weight". The
# others (norms, biases, factors of rope) it adds or multiplies element by element, for which ggml needs F32.
_MATRICES: Final = frozenset(
    {
        "token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output",
        "ffn_gate", "ffn_up", "ffn_down",
    }
)  # fmt: skip
_NOT_FOR_MATRICES: Final = frozenset({"I8", "I16", "I32", "I64", "F64"})

ROPE_SCALING_TYPES: Final = ("none", "linear", "yarn")

# With zero or less, llama.cpp computes nonsense.
_POSITIVE_IF_PRESENT: Final = (
    "rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """Shape of a decoder, in GGUF's words."""

    architecture: str
    context_length: int
    embedding_length: int
    block_count: int
    head_count: int
    head_count_kv: int
    n_vocab: int
    n_params: int
    bits_per_weight: float


def decoder_info(header: GGUFHeader) -> DecoderInfo:
    """Shape of the decoder that ``header`` describes.

    Raises:
        BundleError: the header contradicts itself.
        UnsupportedModelError: another architecture.
    """
    architecture = _get(header, "general.architecture", str)
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(
            f"{header.path} is a {architecture[:40]!r} model: only {supported} is supported."
        )
    _check_keys(header, architecture)

    def positive(key: str) -> int:
        number = _get(header, f"{architecture}.{key}", int)
        _check(header, 0 < number < 2**31, f"{key} is {number}")
        return number

    info = DecoderInfo(
        architecture=architecture,
        context_length=positive("context_length"),
        embedding_length=positive("embedding_length"),
        block_count=positive("block_count"),
        head_count=positive("attention.head_count"),
        head_count_kv=positive("attention.head_count_kv"),
        n_vocab=len(_strings(header, "tokenizer.ggml.tokens")),
        n_params=header.n_params,
        bits_per_weight=header.bits_per_weight,
    )
    positive("feed_forward_length")
    _check(header, info.block_count <= MAX_BLOCKS, f"block_count is {info.block_count}")
    _check(header, info.head_count % info.head_count_kv == 0, "head_count_kv does not divide head_count")
    _check_heads(header, info)
    _check_tensors(header, info)
    epsilon = _get(header, f"{architecture}.attention.layer_norm_rms_epsilon", float)
    _check(header, epsilon > 0, f"layer_norm_rms_epsilon is {epsilon}")
    _check_rope(header, architecture)
    return info


def check_vocabulary(header: GGUFHeader, prompt: PromptSpec, image: ImageSpec | None) -> None:
    """Check that the decoder has the vocabulary, and the width for its tower, that bundle.json says.

    Raises:
        BundleError: the vocabulary or the width is another.
    """
    tokens = _strings(header, "tokenizer.ggml.tokens").read()
    types = header.metadata.get("tokenizer.ggml.token_type")
    _check_tokenizer(header, frozenset(tokens))
    if not isinstance(types, memoryview) or len(types) != len(tokens):
        raise _damaged(header, "it does not have one token type for each token")
    # llama.cpp reads tokens as C strings, and asserts that no two are the same.
    _check(header, all(tokens) and b"\0" not in b"".join(tokens), "a token is empty")
    _check(header, len(set(tokens)) == len(tokens), "a token appears twice")
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            _check(header, type(value) is int and 0 <= value < len(tokens), f"{key} is {value}")
    for kind, named in ((CONTROL, prompt.control_tokens), (USER_DEFINED, prompt.user_defined_tokens)):
        for text, token in named.items():
            known = 0 <= token < len(tokens) and tokens[token] == text.encode() and types[token] == kind
            _check(header, known, f"added token {text!r} of bundle.json is not its token {token}")
    width = _get(header, f"{header.metadata['general.architecture']}.embedding_length", int)
    if image is not None:
        _check(header, width == image.n_embd, f"its width is {width}, the tower's {image.n_embd}")


def _check_tokenizer(header: GGUFHeader, tokens: Set[bytes]) -> None:
    model = _get(header, "tokenizer.ggml.model", str)
    _check(header, model in {"gpt2", "llama"}, "its tokenizer is neither byte-level BPE nor SentencePiece's")
    if model == "llama":
        scores = header.metadata.get("tokenizer.ggml.scores")
        sound = isinstance(scores, memoryview) and scores.format == "f" and len(scores) == len(tokens)
        _check(header, sound, "it does not have one score for each token")
        # llama.cpp ends the process on a byte that has no token.
        _check(header, tokens >= BYTE_TOKENS, "a byte has no token")
        # See llama.Model.tokenize.
        _check(header, not any(b"\n" in token for token in tokens), "a token has a new line in it")


def _check_keys(header: GGUFHeader, architecture: str) -> None:
    """Check the types of what llama.cpp reads, and that nothing is there that it cannot skip."""
    prefix = f"{architecture}."
    types = {**_OTHER_KEYS, **{prefix + name: kind for name, kind in _HYPERPARAMETERS.items()}}
    refused = {prefix + name for name in _REFUSED_HYPERPARAMETERS}
    for key, value in header.metadata.items():
        is_nested = isinstance(value, Skipped) and value.is_nested
        _check(header, not is_nested, f"{key!r} is an array of arrays, for llama.cpp an error")
        _check(header, key not in refused, f"{key!r} makes it another model than those that are supported")
        if key in types:
            _check(header, type(value) is types[key], f"{key!r} is not a {types[key].__name__}")
            _check(header, not isinstance(value, float) or isfinite(value), f"{key!r} is {value}")


def _check_heads(header: GGUFHeader, info: DecoderInfo) -> None:
    """llama.cpp asserts that the heads of keys and values, and what is rotated of them, are of one size."""
    share, rest = divmod(info.embedding_length, info.head_count)
    prefix = f"{info.architecture}.attention."
    head_size = header.metadata.get(f"{prefix}key_length", share)
    _check(header, head_size != share or not rest, "head_count does not divide embedding_length")
    _check(
        header,
        isinstance(head_size, int) and 0 < head_size < 2**31 and head_size % 2 == 0,
        f"the heads have the size {head_size}",
    )
    for key, default in (
        (f"{prefix}value_length", share),
        (f"{info.architecture}.rope.dimension_count", head_size),
    ):
        size = header.metadata.get(key, default)
        _check(header, size == head_size, f"{key} is {size}, not the size of a head")


def _check_rope(header: GGUFHeader, architecture: str) -> None:
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    _check(header, scaling in ROPE_SCALING_TYPES, f"rope.scaling.type is {str(scaling)[:40]!r}")
    for key in _POSITIVE_IF_PRESENT:
        number = header.metadata.get(f"{architecture}.{key}", 1.0)
        _check(header, isinstance(number, float) and number > 0, f"{key} is {number}")


def _check_tensors(header: GGUFHeader, info: DecoderInfo) -> None:
    embeddings = [tensor.dims for tensor in header.tensors if tensor.name == "token_embd.weight"]
    _check(
        header,
        embeddings == [(info.embedding_length, info.n_vocab)],
        "token embeddings and vocabulary differ",
    )
    for tensor in header.tensors:
        name, _, kind = tensor.name.rpartition(".")
        is_matrix = kind == "weight" and name.rpartition(".")[2] in _MATRICES
        qtype = tensor.type.name
        computable = qtype not in _NOT_FOR_MATRICES if is_matrix else qtype == "F32"
        _check(header, computable, f"llama.cpp cannot compute with tensor {tensor.name!r} in {qtype}")


def _strings(header: GGUFHeader, key: str) -> StringArray:
    value = header.metadata.get(key)
    if not isinstance(value, StringArray):
        raise _damaged(header, f"{key} is missing")
    return value


def _get(header: GGUFHeader, key: str, kind: type[T]) -> T:
    value = header.metadata.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _damaged(header, f"{key} is missing or of another type")
    return value


def _check(header: GGUFHeader, sound: bool, what: str) -> None:
    if not sound:
        raise _damaged(header, what)


def _damaged(header: GGUFHeader, what: str) -> BundleError:
    return BundleError(
        f"{header.path} cannot be run ({what}): get the file, or the checkpoint that it comes from, again."
    )
