"""How fast ggml multiplies on this CPU, measured with a matrix of the type that a decoder's weights have.

Quantized weights are multiplied as integers, which is up to several times as fast as in float32 on CPUs with
the instructions for it, and slower on others: no other library's product tells.
"""

import ctypes
import math
import time
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from typing import Final

from acestep_gguf.llama.library import ggml_function

SIDE: Final = 2048
N_TOKENS: Final = 256
ROUNDS: Final = 3
F32: Final = 0
# Memory that ggml may use; it ends the process where that is not enough, and takes no more than it needs. For
# weights (as if they were float32), tokens and products; and in each round for scratch memory of each thread.
TENSOR_BYTES: Final = 2 * 4 * (SIDE * SIDE + 2 * SIDE * N_TOKENS)
THREAD_BYTES: Final = 2**22


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params`` of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def product_flops(tensor_type: int, n_threads: int) -> float | None:
    """Additions and multiplications a second in products with weights of ``tensor_type`` (enum ggml_type).

    Measuring takes some hundredths of a second. None where this build of llama.cpp hides its functions for
    the CPU, as one does that chooses among several at run time.
    """
    try:
        init = ggml_function("ggml_init", c_void_p, _InitParams)
        free = ggml_function("ggml_free", None, c_void_p)
        new_matrix = ggml_function("ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
        set_zero = ggml_function("ggml_set_zero", c_void_p, c_void_p)
        multiply = ggml_function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
        new_graph = ggml_function("ggml_new_graph", c_void_p, c_void_p)
        expand = ggml_function("ggml_build_forward_expand", None, c_void_p, c_void_p)
        compute = ggml_function("ggml_graph_compute_with_ctx", c_int, c_void_p, c_void_p, c_int)
    except AttributeError:
        return None
    context = init(_InitParams(TENSOR_BYTES + ROUNDS * (1 + n_threads) * THREAD_BYTES, None, False))
    try:
        weights = set_zero(new_matrix(context, tensor_type, SIDE, SIDE))
        tokens = set_zero(new_matrix(context, F32, SIDE, N_TOKENS))
        graph = new_graph(context)
        expand(graph, multiply(context, weights, tokens))
        seconds = math.inf
        for _ in range(ROUNDS):
            started = time.perf_counter()
            if compute(context, graph, n_threads) != 0:
                return None
            seconds = min(seconds, time.perf_counter() - started)
    finally:
        free(context)
    return 2 * SIDE * SIDE * N_TOKENS / seconds
