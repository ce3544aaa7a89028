"""What tells a checkpoint's weights apart from those of another training."""

import hashlib
from collections.abc import Mapping
from typing import Final

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor

# Of each tensor, this much goes into the weights' hash: training moves every row that it touches.
N_SAMPLED_BYTES: Final = 4096


def sampled_sha256(stored: Mapping[str, SafetensorsTensor]) -> str:
    """Hash over names, dtypes, shapes and first bytes of all tensors: tells fine-tunes apart."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        tensor = stored[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.read_bytes(0, N_SAMPLED_BYTES).data)
    return digest.hexdigest()
