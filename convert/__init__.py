"""Conversion: a Hugging Face checkpoint goes in, a bundle comes out."""

import acestep_gguf.quantize  # noqa: F401 (first, since it says what to install where gguf is missing)
from acestep_gguf.convert.conversion_plan import ConversionOptions
from acestep_gguf.convert.pipeline import convert_checkpoint, plan_conversion

__all__ = ["ConversionOptions", "convert_checkpoint", "plan_conversion"]
