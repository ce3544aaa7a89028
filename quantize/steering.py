"""Steering: tensors that are to get another type than their recipe's, in llama-quantize's words."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gguf import GGMLQuantizationType as QType

from acestep_gguf.errors import UsageError

# Types that ggml makes well without an importance matrix; those of fewer bits need one.
STEERABLE_TYPES: Final = (
    QType.F32, QType.F16, QType.BF16,
    QType.Q4_0, QType.Q4_1, QType.Q5_0, QType.Q5_1, QType.Q8_0,
    QType.Q2_K, QType.Q3_K, QType.Q4_K, QType.Q5_K, QType.Q6_K,
    QType.IQ4_NL, QType.IQ4_XS,
)  # fmt: skip

# Python's re backtracks without a limit of time: these bounds, on names of at most 63 characters, keep a
# careless pattern from running for hours.
MAX_PATTERN: Final = 256
MAX_REPEATS: Final = 4
_REPEAT: Final = re.compile(r"(?<!\\)(?<!\()[*+?{]")
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")

# What std::regex, llama.cpp's engine, refuses or reads otherwise than Python's re.
_PYTHON_ONLY: Final = re.compile(r"\(\?(?![:=!])|\[\[[:.=]|[*+?}]\+|\{,|\\[az]")


@dataclass(frozen=True, slots=True)
class TensorTypeRule:
    """Tensors in whose name ``pattern`` is found get ``qtype``."""

    pattern: re.Pattern[str]
    qtype: QType


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What differs from the recipe; of several rules that match a tensor, the first counts."""

    tensor_types: tuple[TensorTypeRule, ...] = ()
    output_tensor_type: QType | None = None
    token_embedding_type: QType | None = None
    pure: bool = False

    def type_of(self, name: str) -> QType | None:
        """The type that ``tensor_types`` give the tensor ``name``; None: its recipe's."""
        return next((rule.qtype for rule in self.tensor_types if rule.pattern.search(name)), None)


AS_THE_RECIPE: Final = Steering()


def parse_steering(
    tensor_types: Sequence[str] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    *,
    pure: bool = False,
) -> Steering:
    """Steering from the texts of llama-quantize's options; each of ``tensor_types`` is ``REGEX=TYPE``.

    Raises:
        UsageError: a type or a pattern cannot be used.
    """
    return Steering(
        tensor_types=tuple(map(_parse_rule, tensor_types)),
        output_tensor_type=_parse_type(output_tensor_type) if output_tensor_type else None,
        token_embedding_type=_parse_type(token_embedding_type) if token_embedding_type else None,
        pure=pure,
    )


def _parse_type(name: str) -> QType:
    for qtype in STEERABLE_TYPES:
        if qtype.name == name.upper():
            return qtype
    types = ", ".join(qtype.name for qtype in STEERABLE_TYPES)
    raise UsageError(f"{name} is not a tensor type that can be made: choose from {types}.")


def _parse_rule(text: str) -> TensorTypeRule:
    pattern, equals, qtype = text.partition("=")
    if not (pattern and equals and qtype):
        raise UsageError(f"--tensor-type {text} is not of the form REGEX=TYPE, such as attn_v=Q6_K.")
    # Like llama-quantize, which lowers the case of the whole pattern.
    return TensorTypeRule(_compile(pattern.lower()), _parse_type(qtype))


def _compile(pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_PATTERN or len(_REPEAT.findall(pattern)) > MAX_REPEATS:
        raise UsageError(
            f"--tensor-type has a pattern of more than {MAX_PATTERN} characters or {MAX_REPEATS} repeats "
            "(* + ? {): cut it into several --tensor-type."
        )
    if _REPEATED_GROUP.search(pattern):
        raise UsageError(f"--tensor-type {pattern} repeats a group, which can take forever: write it out.")
    if _PYTHON_ONLY.search(pattern):
        raise UsageError(f"--tensor-type {pattern} is not in the syntax of ECMAScript, which llama.cpp uses.")
    try:
        with warnings.catch_warnings(action="error"):  # of sets within sets, which other engines know
            return re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise UsageError(f"--tensor-type {pattern} is not a regular expression ({error}).") from error
