"""Whether int8 layers read prompts faster than llama.cpp on this machine, found out once."""

import platform
import time
from typing import Final

import numpy as np

from acestep_gguf.bundle.prefill_info import PrefillLayout
from acestep_gguf.cpus import VNNI, cpu_flags
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.backend import build_id
from acestep_gguf.llama.product_speed import product_flops
from acestep_gguf.ort_builds import ort_version
from acestep_gguf.plan.bundle_model import DecoderModel
from acestep_gguf.prefill.rotation import Rotation
from acestep_gguf.storage.verdict import Verdict

N_ROWS: Final = 512
N_ROUNDS: Final = 3
X86: Final = frozenset({"x86_64", "AMD64"})


def check_int8() -> None:
    """Refuse int8 layers where onnxruntime adds up products of int8 in 16 bits, which overflow.

    It can be told to compute exactly, but not with weights that are inputs of the graph.

    Raises:
        UsageError: on an x86 CPU without VNNI.
    """
    if not _is_exact():
        raise UsageError(
            "prefill is int8, but this CPU has no VNNI, without which int8 layers give wrong numbers: "
            "leave it out.",
            settings=["prefill"],
        )


def gains(layout: PrefillLayout, decoder: DecoderModel, *, n_threads: int) -> bool:
    """Whether a layer computes positions faster than llama.cpp's products alone.

    Measuring takes about half a second the first time; then it is remembered for this machine and decoder.

    Raises:
        BundleError: onnxruntime cannot load the graph.
        DecodeError: it fails.
    """
    if not _is_exact():
        return False
    shape = decoder.shape
    numbers = [shape.n_embd, shape.n_ff, shape.n_head, shape.n_head_kv, shape.n_embd_head, decoder.main_type]
    verdict = Verdict("prefill", [n_threads, ort_version(), build_id(), *numbers])
    return verdict.found_out(lambda: _is_faster(layout, decoder, n_threads))


def _is_exact() -> bool:
    return platform.machine() not in X86 or bool(cpu_flags() & VNNI)


def _is_faster(layout: PrefillLayout, decoder: DecoderModel, n_threads: int) -> bool:
    from acestep_gguf.prefill.layers import PrefillLayers  # noqa: PLC0415 (what was measured needs no onnxruntime)

    flops = product_flops(decoder.main_type, n_threads)
    if flops is None:
        return False
    shape = decoder.shape
    layers = PrefillLayers(
        layout,
        Rotation.of(decoder.header, shape.n_embd_head),
        n_head=shape.n_head,
        n_threads=n_threads,
        is_streamed=False,
    )
    hidden = np.random.default_rng(0).standard_normal((N_ROWS, shape.n_embd), np.float32)
    nothing = np.empty((1, shape.n_head_kv, 0, shape.n_embd_head), np.float32)
    seconds = []
    for _ in range(N_ROUNDS):
        began = time.perf_counter()
        next(layers.read(hidden, 0, lambda _: (nothing, nothing)))
        seconds.append(time.perf_counter() - began)
    per_layer = 2 * decoder.n_multiplied / shape.n_layer * N_ROWS / flops
    return min(seconds) < per_layer
