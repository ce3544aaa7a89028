"""Conversion: a Hugging Face checkpoint goes in, a bundle comes out."""

from acestep_gguf.errors import MissingPackageError

try:
    from acestep_gguf.convert.conversion_plan import ConversionOptions
    from acestep_gguf.convert.pipeline import convert_checkpoint, plan_conversion
except ModuleNotFoundError as error:
    if error.name != "gguf":
        raise
    raise MissingPackageError("gguf") from error

__all__ = ["ConversionOptions", "convert_checkpoint", "plan_conversion"]
