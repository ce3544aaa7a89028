"""Steering: tensors that are to get another type than their recipe's, in llama-quantize's words."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf import GGMLQuantizationType as QType

from acestep_gguf.errors import UsageError

# Those of the last line need an importance matrix: imatrix.py sees to that.
STEERABLE_TYPES: Final = (
    QType.F32, QType.F16, QType.BF16,
    QType.Q4_0, QType.Q4_1, QType.Q5_0, QType.Q5_1, QType.Q8_0,
    QType.Q2_K, QType.Q3_K, QType.Q4_K, QType.Q5_K, QType.Q6_K,
    QType.IQ4_NL, QType.IQ4_XS, QType.IQ3_S,
    QType.IQ1_S, QType.IQ1_M, QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S, QType.IQ3_XXS,
)  # fmt: skip

# A mixture of a type for each tensor of llama.cpp's most layers has 200 kB.
MAX_FILE_BYTES: Final = 2**20


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

    def check_is_followed(self, names: Sequence[str]) -> None:
        """Refuse a rule that is for none of the tensors ``names``: it is mistyped.

        Raises:
            UsageError: there is one.
        """
        for rule in self.tensor_types:
            if not any(map(rule.pattern.search, names)):
                raise UsageError(
                    f"{rule.pattern.pattern!r} is in the name of no tensor that is quantized: names are like "
                    "blk.0.attn_v.weight."
                )


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
        output_tensor_type=None if output_tensor_type is None else _parse_type(output_tensor_type),
        token_embedding_type=None if token_embedding_type is None else _parse_type(token_embedding_type),
        pure=pure,
    )


def read_tensor_types(path: Path) -> tuple[str, ...]:
    """The ``REGEX=TYPE`` of a file of llama-quantize's ``--tensor-type-file``, separated by white space.

    Raises:
        UsageError: the file cannot be read, is too large, or is no text.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file: choose another one of tensor types.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(
                f"{path} has over {MAX_FILE_BYTES:,} bytes: choose another file of tensor types."
            )
        return tuple(path.read_text("utf-8").split())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): choose another file of tensor types."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text of REGEX=TYPE: choose another file.") from error


def _parse_type(name: str) -> QType:
    for qtype in STEERABLE_TYPES:
        if qtype.name == name.upper():
            return qtype
    types = ", ".join(qtype.name for qtype in STEERABLE_TYPES)
    raise UsageError(f"{name!r} is not a tensor type that can be made: choose from {types}.")


def _parse_rule(text: str) -> TensorTypeRule:
    # The type is what follows the last "=": lookaheads have one, too.
    pattern, _, qtype = text.rpartition("=")
    if not (pattern and qtype):
        raise UsageError(f"{text!r} is not a pattern and a type, REGEX=TYPE, such as attn_v=Q6_K.")
    try:
        with warnings.catch_warnings(action="error"):  # of [[:alpha:]], which Python takes for something else
            # Like llama-quantize, which lowers the case of the whole pattern.
            return TensorTypeRule(re.compile(pattern.lower(), re.ASCII), _parse_type(qtype))
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise UsageError(f"{pattern!r} is not a regular expression of Python ({error}).") from error
