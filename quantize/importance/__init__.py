"""Importance matrices are made: a decoder reads calibration data, and what it multiplies is summed."""

from acestep_gguf.quantize.importance.run import ImatrixOptions, Made, TextFile, make_imatrix
from acestep_gguf.quantize.importance.samples import Sample, picture_samples, read_samples

__all__ = [
    "ImatrixOptions",
    "Made",
    "Sample",
    "TextFile",
    "make_imatrix",
    "picture_samples",
    "read_samples",
]
