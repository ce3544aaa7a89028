"""Conversion: a Hugging Face checkpoint goes in, a bundle comes out."""

from acestep_gguf.convert.pipeline import convert_checkpoint, plan_conversion

__all__ = ["convert_checkpoint", "plan_conversion"]
