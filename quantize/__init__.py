"""Recipes, block quantizers and GGUF writing: from tensors to quantized files."""

from acestep_gguf.errors import MissingPackageError

try:
    import gguf  # noqa: F401 (nearly every module here needs it)
except ModuleNotFoundError as error:
    raise MissingPackageError("gguf") from error
