"""The recipe of each ftype: its base type, and the roles that get another one, in which layers.

What ``llama_tensor_get_type_impl`` in src/llama-quant.cpp of the llama.cpp in llama-cpp-python 0.3.36 decides
for decoders without experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.names import Ftype


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands, and what a recipe heeds beside that."""

    layer: int
    n_layers: int
    n_sharing: int  # heads of queries for each head of keys and values
    is_weighed: bool  # whether there is an importance matrix


Where = Callable[[Place], bool]
# Of several, the first that holds counts; where none does, the tensor gets the base type.
Rule: TypeAlias = "QType | tuple[tuple[Where, QType], ...]"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Types by role; ``output`` is that of the output matrix, and of embeddings that are tied to it."""

    base: QType
    roles: Mapping[str, Rule] = field(default_factory=dict)
    output: QType = QType.Q6_K

    def type_of(self, role: str, place: Place) -> QType:
        """The type of a tensor of ``role`` at ``place``."""
        rule = self.roles.get(role, self.base)
        if isinstance(rule, QType):
            return rule
        return next((qtype for where, qtype in rule if where(place)), self.base)


def _everywhere(_: Place) -> bool:
    return True


def _first_two(place: Place) -> bool:
    return place.layer < 2


def _first_four(place: Place) -> bool:
    return place.layer < 4


def _first_sixteenth(place: Place) -> bool:
    return place.layer < place.n_layers // 16


def _first_eighth(place: Place) -> bool:
    return place.layer < place.n_layers // 8


def _first_eighth_weighed(place: Place) -> bool:
    return place.is_weighed and _first_eighth(place)


def _first_eighth_unweighed(place: Place) -> bool:
    return not place.is_weighed and _first_eighth(place)


def _between_the_eighths(place: Place) -> bool:
    return place.n_layers // 8 <= place.layer < 7 * place.n_layers // 8


def _sensitive(place: Place) -> bool:
    """The first and last eighth of the layers and every third between."""
    return not _between_the_eighths(place) or (place.layer - place.n_layers // 8) % 3 == 2


def _four_share(place: Place) -> bool:
    """Values of so few heads are small, so that more bits cost little."""
    return place.n_sharing >= 4


def _tiny(base: QType, more: QType, attn_output: QType) -> Recipe:
    """One of the recipes of fewest bits; ``more`` is for what suffers most."""
    return Recipe(
        base,
        {
            "token_embd": more,
            "attn_v": ((_four_share, QType.Q4_K), (_everywhere, more)),
            "ffn_down": ((_first_eighth, more),),
            "attn_output": attn_output,
        },
        output=QType.Q5_K,
    )


RECIPES: Final[Mapping[Ftype, Recipe]] = {
    "IQ1_S": _tiny(QType.IQ1_S, QType.Q2_K, attn_output=QType.IQ2_XXS),
    "IQ1_M": _tiny(QType.IQ1_M, QType.Q2_K, attn_output=QType.IQ2_XXS),
    "IQ2_XXS": _tiny(QType.IQ2_XXS, QType.Q2_K, attn_output=QType.IQ2_XXS),
    "IQ2_XS": _tiny(QType.IQ2_XS, QType.Q2_K, attn_output=QType.IQ2_XS),
    "IQ2_S": _tiny(QType.IQ2_XS, QType.IQ3_S, attn_output=QType.IQ3_S),
    "IQ2_M": _tiny(QType.IQ2_S, QType.IQ3_S, attn_output=QType.IQ3_S),
    "Q2_K_S": Recipe(
        QType.Q2_K,
        {"attn_v": ((_four_share, QType.Q4_K),), "ffn_down": ((_first_eighth, QType.Q4_K),)},
    ),
    "Q2_K": Recipe(
        QType.Q2_K,
        {
            "attn_v": ((_four_share, QType.Q4_K), (_everywhere, QType.Q3_K)),
            "ffn_down": QType.Q3_K,
            "attn_output": QType.Q3_K,
        },
    ),
    "IQ3_XXS": Recipe(
        QType.IQ3_XXS,
        {
            "token_embd": QType.IQ3_S,
            "attn_v": ((_four_share, QType.Q4_K),),
            "attn_k": QType.IQ2_S,
            "attn_q": QType.IQ2_S,
            "attn_output": QType.IQ3_S,
        },
        output=QType.Q5_K,
    ),
    "IQ3_XS": Recipe(
        QType.IQ3_S,
        {
            "attn_v": ((_four_share, QType.Q4_K),),
            "attn_k": QType.IQ3_XXS,
            "attn_q": QType.IQ3_XXS,
            "ffn_gate": ((_between_the_eighths, QType.IQ3_XXS),),
            "ffn_up": ((_between_the_eighths, QType.IQ3_XXS),),
        },
    ),
    "IQ3_S": Recipe(QType.IQ3_S, {"attn_v": ((_four_share, QType.Q4_K),)}),
    "IQ3_M": Recipe(
        QType.IQ3_S,
        {"attn_v": QType.Q4_K, "ffn_down": ((_first_eighth, QType.Q4_K),), "attn_output": QType.Q4_K},
    ),
    "Q3_K_S": Recipe(QType.Q3_K),
    "Q3_K_M": Recipe(
        QType.Q3_K,
        {
            "attn_v": ((_first_two, QType.Q5_K), (_everywhere, QType.Q4_K)),
            "ffn_down": ((_first_sixteenth, QType.Q5_K), (_everywhere, QType.Q4_K)),
            "attn_output": QType.Q4_K,
        },
    ),
    "Q3_K_L": Recipe(QType.Q3_K, {"attn_v": QType.Q5_K, "ffn_down": QType.Q5_K, "attn_output": QType.Q5_K}),
    "IQ4_XS": Recipe(
        QType.IQ4_XS,
        {"attn_v": ((_four_share, QType.Q5_K),), "ffn_down": ((_first_eighth_unweighed, QType.Q5_K),)},
    ),
    "IQ4_NL": Recipe(
        QType.IQ4_NL,
        {"attn_v": ((_four_share, QType.Q5_K),), "ffn_down": ((_first_eighth_unweighed, QType.Q5_K),)},
    ),
    "Q4_0": Recipe(QType.Q4_0, {"ffn_down": ((_first_eighth_weighed, QType.Q4_1),)}),
    "Q4_1": Recipe(QType.Q4_1),
    "Q4_K_S": Recipe(
        QType.Q4_K, {"attn_v": ((_first_four, QType.Q5_K),), "ffn_down": ((_first_eighth, QType.Q5_K),)}
    ),
    "Q4_K_M": Recipe(
        QType.Q4_K, {"attn_v": ((_sensitive, QType.Q6_K),), "ffn_down": ((_sensitive, QType.Q6_K),)}
    ),
    "Q5_0": Recipe(QType.Q5_0, {"ffn_down": ((_first_eighth_weighed, QType.Q5_1),)}),
    "Q5_1": Recipe(QType.Q5_1),
    "Q5_K_S": Recipe(QType.Q5_K),
    "Q5_K_M": Recipe(
        QType.Q5_K, {"attn_v": ((_sensitive, QType.Q6_K),), "ffn_down": ((_sensitive, QType.Q6_K),)}
    ),
    "Q6_K": Recipe(QType.Q6_K),
    "Q8_0": Recipe(QType.Q8_0, output=QType.Q8_0),
    "F16": Recipe(QType.F16),
    "BF16": Recipe(QType.BF16),
    "F32": Recipe(QType.F32),
}

# Those that heed no other rule, not even that of 70B; see recipes.py.
FEW_BITS: Final[frozenset[Ftype]] = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})

# Without an importance matrix these are garbage.
WEIGHED_FTYPES: Final[frozenset[Ftype]] = FEW_BITS | {"Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"}
WEIGHED_TYPES: Final = frozenset(
    {QType.IQ1_S, QType.IQ1_M, QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S, QType.IQ3_XXS}
)
