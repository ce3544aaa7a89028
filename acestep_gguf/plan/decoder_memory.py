"""A decoder's shape, and the memory of its weights and KV cache, from its GGUF header alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, GGUFHeader, TensorInfo
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.llama.params import CACHE_TYPES
from acestep_gguf.options import CacheType

N_CTX_STEP: Final = 256  # llama.cpp pads a context to a multiple
EMBEDDINGS: Final = "token_embd.weight"
OUTPUT: Final = "output.weight"
OUTPUT_NORM: Final = "output_norm.weight"
FFN: Final = re.compile(r"ffn_(gate|up|down)\.weight")
# What each layer has, and of how many dimensions.
LAYER_TENSORS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("attn_norm.weight", "ffn_norm.weight"), 1),
    **dict.fromkeys(("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"), 2),
    **dict.fromkeys(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"), 2),
}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Hyperparameters that sizes depend on, under llama.cpp's names."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_embd_head: int  # width of one attention head
    n_ff: int
    n_vocab: int
    n_ctx_train: int

    @property
    def n_embd_q(self) -> int:
        """Width of Q of one token in one layer."""
        return self.n_embd_head * self.n_head

    @property
    def n_embd_gqa(self) -> int:
        """Width of K, and of V, of one token in one layer."""
        return self.n_embd_head * self.n_head_kv


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """Tensors of one layer by name without ``blk.N.``, and in the two halves that llama.cpp can keep apart.

    ``ffn`` are the MLP's three matrices, ``attention`` is all the rest.
    """

    tensors: Mapping[str, TensorInfo]
    attention: tuple[TensorInfo, ...]
    ffn: tuple[TensorInfo, ...]
    attention_bytes: int
    ffn_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, TensorInfo]) -> Self:
        """Tell the feed-forward network of a layer from the rest, by the names of its tensors."""
        ffn = tuple(tensor for name, tensor in tensors.items() if FFN.fullmatch(name))
        attention = tuple(tensor for name, tensor in tensors.items() if not FFN.fullmatch(name))
        return cls(tensors, attention, ffn, n_bytes(attention), n_bytes(ffn))


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """All tensors of a decoder; ``output`` is the embeddings' own tensor where both are one (tied)."""

    embeddings: TensorInfo
    output: TensorInfo
    output_norm: TensorInfo
    layers: tuple[LayerWeights, ...]

    @property
    def is_tied(self) -> bool:
        """Whether the embeddings are the output matrix, too."""
        return self.output is self.embeddings


def n_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Bytes of all ``tensors`` together."""
    return sum(tensor.nbytes for tensor in tensors)


def decoder_shape(header: GGUFHeader) -> DecoderShape:
    """The shape that ``header`` describes, of a decoder of the Llama family (Llama, Qwen2, Qwen3).

    Raises:
        BundleError: a hyperparameter is missing or out of its range.
    """
    architecture = header.metadata.get("general.architecture")

    def positive(key: str) -> int:
        value = header.metadata.get(f"{architecture}.{key}")
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise _unsound(header, f"{key} is {value}")
        return value

    embeddings = _tensor(header, EMBEDDINGS)
    n_embd, n_head = positive("embedding_length"), positive("attention.head_count")
    has_own_width = f"{architecture}.attention.key_length" in header.metadata
    shape = DecoderShape(
        n_layer=positive("block_count"),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=positive("attention.head_count_kv"),
        n_embd_head=positive("attention.key_length") if has_own_width else n_embd // n_head,
        n_ff=positive("feed_forward_length"),
        n_vocab=embeddings.dims[-1],
        n_ctx_train=positive("context_length"),
    )
    is_divided = has_own_width or shape.n_embd % shape.n_head == 0
    if not is_divided or shape.n_head % shape.n_head_kv or shape.n_layer > len(header.tensors):
        raise _unsound(header, "its heads or layers do not add up")
    return shape


def decoder_weights(header: GGUFHeader) -> DecoderWeights:
    """The tensors of ``header``, by where llama.cpp can put them.

    Raises:
        BundleError: one that every decoder has is missing, or is no vector or matrix as it should be.
    """
    n_layer = decoder_shape(header).n_layer
    layers: list[dict[str, TensorInfo]] = [{} for _ in range(n_layer)]
    for tensor in header.tensors:
        match = re.fullmatch(r"blk\.(\d{1,4})\.(.+)", tensor.name)
        if match and int(match[1]) < n_layer:
            layers[int(match[1])][match[2]] = tensor
    for number, tensors in enumerate(layers):
        for name, n_dims in LAYER_TENSORS.items():
            if name not in tensors or len(tensors[name].dims) != n_dims:
                raise _unsound(header, f"tensor blk.{number}.{name} is missing or of another shape")
    embeddings = _tensor(header, EMBEDDINGS)
    has_output = any(tensor.name == OUTPUT for tensor in header.tensors)
    return DecoderWeights(
        embeddings=embeddings,
        output=_tensor(header, OUTPUT) if has_output else embeddings,
        output_norm=_tensor(header, OUTPUT_NORM),
        layers=tuple(map(LayerWeights.of, layers)),
    )


def padded_n_ctx(n_ctx: int) -> int:
    """Cells that llama.cpp makes for a context of ``n_ctx`` tokens."""
    return -(-n_ctx // N_CTX_STEP) * N_CTX_STEP


def row_bytes(cache_type: CacheType, n_elements: int) -> int:
    """Bytes of a row of ``n_elements`` values in a KV cache.

    Raises:
        UsageError: they do not fill blocks of that type.
    """
    block = TENSOR_TYPES[CACHE_TYPES[cache_type]]
    if n_elements % block.block_size:
        raise UsageError(
            f"this decoder's KV heads of {n_elements} values do not fill blocks of {cache_type}: use f16."
        )
    return n_elements // block.block_size * block.type_size


def kv_layer_bytes(shape: DecoderShape, n_ctx: int, type_k: CacheType, type_v: CacheType) -> int:
    """Bytes of the KV cache of one layer: a row of K and one of V for each cell."""
    width = shape.n_embd_gqa
    return padded_n_ctx(n_ctx) * (row_bytes(type_k, width) + row_bytes(type_v, width))


def state_bytes(shape: DecoderShape, n_tokens: int, type_k: CacheType, type_v: CacheType) -> int:
    """Bytes of a copy of the keys and values of ``n_tokens`` positions, all layers together."""
    width = shape.n_embd_gqa
    return n_tokens * shape.n_layer * (row_bytes(type_k, width) + row_bytes(type_v, width))


def _tensor(header: GGUFHeader, name: str) -> TensorInfo:
    for tensor in header.tensors:
        if tensor.name == name:
            return tensor
    raise _unsound(header, f"tensor {name} is missing")


def _unsound(header: GGUFHeader, what: str) -> BundleError:
    return BundleError(f"{header.path} is not a sound decoder ({what}): convert the checkpoint again.")
