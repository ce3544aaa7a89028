"""What `convert` and `quantize` are told about types of tensors, in llama-quantize's words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from acestep_gguf.options import QUANTIZATION, Flag

if TYPE_CHECKING:
    from acestep_gguf.quantize.steering import Steering


def _flag(name: str, *, help: str, metavar: str | None = None) -> Flag:
    return Flag((name,), help, QUANTIZATION, metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """Types that are not the recipe's, and what weighs the errors; all None or empty: as the recipe says."""

    tensor_type: Annotated[
        Sequence[str],
        _flag(
            "--tensor-type",
            metavar="REGEX=TYPE",
            help="Type of the tensors whose names match; repeat for more.",
        ),
    ] = ()
    output_tensor_type: Annotated[
        str | None, _flag("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
    ] = None
    token_embedding_type: Annotated[
        str | None, _flag("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
    ] = None
    pure: Annotated[bool, _flag("--pure", help="Give all matrices one type instead of a mixture.")] = False
    imatrix: Annotated[
        Path | None,
        _flag("--imatrix", metavar="FILE", help="Importance matrix, as llama-imatrix writes it."),
    ] = None

    def parsed(self) -> "Steering":
        """What differs from the recipe.

        Raises:
            UsageError: a type or a pattern cannot be used.
        """
        from acestep_gguf.quantize.steering import parse_steering

        return parse_steering(
            self.tensor_type, self.output_tensor_type, self.token_embedding_type, pure=self.pure
        )
