"""Recipes: which type each tensor of a decoder gets in a file of one ftype.

The rules are those of ``llama_tensor_get_type`` and ``tensor_type_fallback`` in src/llama-quant.cpp of the
llama.cpp in llama-cpp-python 0.3.36, for decoders without experts; tests compare the files, byte for byte.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gguf import GGMLQuantizationType as QType

from acestep_gguf.names import Ftype
from acestep_gguf.quantize.ggml import block_size

BASE_TYPE: Final[dict[Ftype, QType]] = {
    "Q4_K_M": QType.Q4_K,
    "Q5_K_M": QType.Q5_K,
    "Q8_0": QType.Q8_0,
    "F16": QType.F16,
    "BF16": QType.BF16,
    "F32": QType.F32,
}
FLOAT_TYPES: Final = frozenset({QType.F32, QType.F16, QType.BF16})

# The type that the more sensitive tensors of a mixed ("M") recipe get.
MORE_BITS: Final[dict[Ftype, QType]] = {"Q4_K_M": QType.Q6_K, "Q5_K_M": QType.Q6_K}

# For rows that the type's block does not divide.
FALLBACK: Final[dict[QType, QType]] = {
    QType.Q4_K: QType.Q5_0,
    QType.Q5_K: QType.Q5_1,
    QType.Q6_K: QType.Q8_0,
}
LAST_FALLBACK: Final = QType.F16

# llama.cpp calls a Qwen2 of 80 layers "70B"; there, 8 heads share each attn_v, so more bits cost little.
N_LAYERS_70B: Final = 80


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's GGUF name and its shape, rows first: ``shape[-1]`` is the row length."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """The type a tensor gets, and the one its recipe wanted: they differ where rows do not fit it."""

    qtype: QType
    wanted: QType

    @property
    def is_fallback(self) -> bool:
        """Whether the tensor's rows did not fit the wanted type."""
        return self.qtype is not self.wanted


def choose_types(ftype: Ftype, tensors: Sequence[TensorShape]) -> dict[str, TypeChoice]:
    """The type of every tensor, by name, in a decoder file of ``ftype``."""
    names = {tensor.name for tensor in tensors}
    is_tied = "output.weight" not in names
    n_layers = _count_layers(names)
    choices = {}
    for tensor in tensors:
        wanted = _wanted_type(ftype, tensor, n_layers=n_layers, is_tied=is_tied)
        choices[tensor.name] = TypeChoice(_fitting_type(wanted, tensor.shape[-1]), wanted)
    return choices


def is_quantizable(tensor: TensorShape) -> bool:
    """Whether a recipe may touch the tensor; norms, biases and single rows stay float32."""
    n_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return n_rows > 1 and tensor.name.endswith("weight") and not tensor.name.endswith("_norm.weight")


def _wanted_type(ftype: Ftype, tensor: TensorShape, *, n_layers: int, is_tied: bool) -> QType:
    if not is_quantizable(tensor):
        return QType.F32
    base = BASE_TYPE[ftype]
    if base in FLOAT_TYPES:
        return base
    if tensor.name == "output.weight" or (is_tied and tensor.name == "token_embd.weight"):
        # A tied embedding is the output matrix, too.
        return QType.Q8_0 if base == QType.Q8_0 or tensor.shape[-1] % block_size(base) else QType.Q6_K
    if ftype in MORE_BITS and _is_sensitive(tensor.name, n_layers):
        return MORE_BITS[ftype]
    if base == QType.Q4_K and n_layers == N_LAYERS_70B and tensor.name.endswith("attn_v.weight"):
        return QType.Q5_K
    return base


def _is_sensitive(name: str, n_layers: int) -> bool:
    """attn_v and ffn_down in the first and last eighth of the layers and in every third between."""
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if match is None:
        return False
    layer = int(match[1])
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


def _fitting_type(wanted: QType, n_per_row: int) -> QType:
    if n_per_row % block_size(wanted) == 0:
        return wanted
    fallback = FALLBACK.get(wanted, wanted)
    return fallback if n_per_row % block_size(fallback) == 0 else LAST_FALLBACK


def _count_layers(names: Iterable[str]) -> int:
    return sum(name.endswith(".attn_v.weight") for name in names)
