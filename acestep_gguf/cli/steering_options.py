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
    tensor_type_file: Annotated[
        Path | None,
        _flag(
            "--tensor-type-file",
            metavar="FILE",
            help="File of such REGEX=TYPE, separated by spaces or new lines; --tensor-type counts first.",
        ),
    ] = None
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
            UsageError: a type or a pattern cannot be used, or the file of them cannot be read.
        """
        from acestep_gguf.quantize.steering import parse_steering, read_tensor_types

        from_file = () if self.tensor_type_file is None else read_tensor_types(self.tensor_type_file)
        return parse_steering(
            (*self.tensor_type, *from_file),
            self.output_tensor_type,
            self.token_embedding_type,
            pure=self.pure,
        )
