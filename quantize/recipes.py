"""Recipes: which type each tensor of a decoder gets in a file of one ftype.

The rules are those of ``llama_tensor_get_type`` and ``tensor_type_fallback`` in src/llama-quant.cpp of the
llama.cpp in llama-cpp-python 0.3.36, for decoders without experts; tests compare the files, byte for byte.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.quantize.ggml import block_size
from acestep_gguf.quantize.recipe_tables import FEW_BITS, RECIPES, Place
from acestep_gguf.quantize.steering import AS_THE_RECIPE, Steering

EMBEDDINGS: Final = "token_embd.weight"
OUTPUT: Final = "output.weight"

FLOAT_TYPES: Final = frozenset({QType.F32, QType.F16, QType.BF16})

# For rows that the type's block does not divide.
FALLBACK: Final[dict[QType, QType]] = {
    QType.IQ1_S: QType.IQ4_NL,
    QType.IQ1_M: QType.IQ4_NL,
    QType.IQ2_XXS: QType.IQ4_NL,
    QType.IQ2_XS: QType.IQ4_NL,
    QType.IQ2_S: QType.IQ4_NL,
    QType.IQ3_XXS: QType.IQ4_NL,
    QType.IQ3_S: QType.IQ4_NL,
    QType.IQ4_XS: QType.IQ4_NL,
    QType.Q2_K: QType.Q4_0,
    QType.Q3_K: QType.Q4_0,
    QType.Q4_K: QType.Q5_0,
    QType.Q5_K: QType.Q5_1,
    QType.Q6_K: QType.Q8_0,
}
LAST_FALLBACK: Final = QType.F16

# llama.cpp calls a decoder of 80 layers "70B", where 8 heads share each attn_v, so that more bits cost
# little; a Llama only if it is so, a Qwen3 never.
N_LAYERS_70B: Final = 80


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's GGUF name and its shape, rows first: ``shape[-1]`` is the row length.

    ``stored_type`` is what it keeps when no recipe may touch it.
    """

    name: str
    shape: tuple[int, ...]
    stored_type: QType = QType.F32


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """The type a tensor gets, and the one that was wanted: they differ where rows do not fit it."""

    qtype: QType
    wanted: QType

    @property
    def is_fallback(self) -> bool:
        """Whether the tensor's rows did not fit the wanted type."""
        return self.qtype is not self.wanted


def choose_types(
    ftype: Ftype,
    tensors: Sequence[TensorShape],
    steering: Steering = AS_THE_RECIPE,
    *,
    arch: str = "qwen2",
    is_weighed: bool = False,
) -> dict[str, TypeChoice]:
    """The type of every tensor, by name, in a decoder file of ``ftype`` and the architecture ``arch``.

    With an importance matrix (``is_weighed``), some recipes are others.

    Raises:
        UsageError: ``steering`` has a rule that is for no tensor.
    """
    names = [tensor.name for tensor in tensors]
    steering.check_is_followed([tensor.name for tensor in tensors if is_quantizable(tensor)])
    n_layers = sum(name.endswith(".attn_v.weight") for name in names)
    n_sharing = _heads_sharing_values(tensors)
    recipe = _Recipe(
        ftype,
        steering,
        n_layers=n_layers,
        n_sharing=n_sharing,
        is_tied=OUTPUT not in names,
        is_70b=n_layers == N_LAYERS_70B and (arch == "qwen2" or (arch == "llama" and n_sharing > 1)),
        is_weighed=is_weighed,
    )
    choices = {}
    for tensor in sorted(tensors, key=lambda tensor: layer_order(tensor.name)):
        wanted = recipe.type_of(tensor)
        choices[tensor.name] = TypeChoice(fitting_type(wanted, tensor.shape[-1]), wanted)
    return choices


def _heads_sharing_values(tensors: Sequence[TensorShape]) -> int:
    """How many heads of queries there are for each head of keys and values."""
    n_rows = {tensor.name: tensor.shape[0] for tensor in tensors}
    n_queries, n_keys = n_rows.get("blk.0.attn_q.weight"), n_rows.get("blk.0.attn_k.weight")
    return n_queries // n_keys if n_queries and n_keys else 1


def is_quantizable(tensor: TensorShape) -> bool:
    """Whether a recipe may touch the tensor; norms, biases and single rows stay as they are."""
    n_rows = prod(tensor.shape[:-1])
    return n_rows > 1 and tensor.name.endswith("weight") and "_norm.weight" not in tensor.name


def role_of(name: str) -> str:
    """What a tensor does in its layer, such as ``attn_v``; of those outside, ``token_embd`` or ``output``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def layer_order(name: str) -> tuple[int, str]:
    """Sorting key of llama-quantize's order: what is outside of the layers, then layer by layer."""
    match = re.match(r"blk\.(\d+)", name)
    return (int(match[1]) if match else -1, name)


@dataclass(slots=True)
class _Recipe:
    """A recipe at work: it is asked for tensor after tensor, in layer order.

    Like llama.cpp's, it counts the tensors of each role as it meets them, so that one whose type is steered
    moves the rule of the layers with more bits on by one.
    """

    ftype: Ftype
    steering: Steering
    n_layers: int
    n_sharing: int
    is_tied: bool
    is_70b: bool
    is_weighed: bool
    n_met: Counter[str] = field(default_factory=Counter)

    def type_of(self, tensor: TensorShape) -> QType:
        base, steering = RECIPES[self.ftype].base, self.steering
        if not is_quantizable(tensor):
            return tensor.stored_type
        if tensor.name == EMBEDDINGS and steering.token_embedding_type is not None:
            return steering.token_embedding_type
        if tensor.name == OUTPUT and steering.output_tensor_type is not None:
            return steering.output_tensor_type
        if base in FLOAT_TYPES:
            return base
        steered = steering.type_of(tensor.name)
        if steered is not None:
            return steered
        return base if steering.pure else self._mixed_type(tensor, base)

    def _mixed_type(self, tensor: TensorShape, base: QType) -> QType:
        if tensor.name == OUTPUT or (self.is_tied and tensor.name == EMBEDDINGS):
            # A tied embedding is the output matrix, too.
            if self.steering.output_tensor_type is not None:
                return self.steering.output_tensor_type
            does_not_fit = tensor.shape[-1] % block_size(base) > 0
            return QType.Q8_0 if does_not_fit else RECIPES[self.ftype].output
        role = role_of(tensor.name)
        place = Place(self.n_met[role], self.n_layers, self.n_sharing, self.is_weighed)
        self.n_met[role] += 1
        qtype = RECIPES[self.ftype].type_of(role, place)
        is_raised = self.is_70b and role == "attn_v" and self.ftype not in FEW_BITS
        return QType.Q5_K if is_raised and qtype in (QType.Q3_K, QType.Q4_K) else qtype


def fitting_type(wanted: QType, n_per_row: int) -> QType:
    """``wanted``, or what a tensor whose rows have another length than its blocks gets instead."""
    if n_per_row % block_size(wanted) == 0:
        return wanted
    fallback = FALLBACK.get(wanted, wanted)
    return fallback if n_per_row % block_size(fallback) == 0 else LAST_FALLBACK
