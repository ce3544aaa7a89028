"""Which weights llama.cpp repacks for this CPU while it loads them; they become anonymous memory.

The table is that of ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp, for x86 and ARM.
"""

from collections.abc import Iterable
from typing import Final

from acestep_gguf.bundle.gguf_header import TensorInfo

# Flag of the CPU, in Linux's words -> types that are repacked, and what must divide their number of rows.
REPACKED: Final[dict[str, dict[str, int]]] = {
    "avx2": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8},
    "avx512f": {"Q2_K": 8},
    "asimddp": {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4},
}


def is_repacked(tensor: TensorInfo, cpu_flags: Iterable[str]) -> bool:
    """Whether llama.cpp repacks a matrix that is multiplied with, when it may."""
    return len(tensor.dims) == 2 and any(
        tensor.type.name in REPACKED.get(flag, {}) and tensor.dims[1] % REPACKED[flag][tensor.type.name] == 0
        for flag in cpu_flags
    )
