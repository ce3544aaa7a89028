"""Expected speeds: how long it takes to read the weights, or to multiply with them.

Writing an answer reads every weight, and the KV cache so far, once a token, so it is about as fast as the
memory that they lie in. Reading a prompt multiplies every weight with many tokens at once, so it is about as
fast as arithmetic, or as the way of the weights to it. These are estimates: what else is computed takes time,
too, and rates that were measured while the machine was busy are too low.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

PROBE_BYTES: Final = 64 * 2**20  # far more than a cache holds
PROBE_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes, or operations, a second; None is unknown. ``disk`` counts only where weights are paged."""

    ram: float | None = None
    vram: float | None = None
    pcie: float | None = None
    disk: float | None = None
    cpu_flops: float | None = None
    gpu_flops: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one token, or one micro-batch, costs on a plan; sizes in bytes.

    ``ram`` and ``vram`` are weights and KV cache read for one token of an answer; ``paged`` are those of
    ``ram`` that memory does not hold. ``weights_to_gpu`` are sent for each micro-batch of ``n_ubatch``
    tokens.
    """

    ram: int
    vram: int
    paged: int
    cpu_weights: int  # numbers of weights that the CPU, and the GPU, multiply with in prefill
    gpu_weights: int
    weights_to_gpu: int
    n_ubatch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second, None where a rate is unknown; and how it was computed."""

    decode: float | None
    prefill: float | None
    decode_formula: str
    prefill_formula: str


def expected_speed(work: Work, rates: Rates) -> Speed:
    """Tokens a second of prefill and decode; None where a rate is not known."""
    resident = work.ram - work.paged
    decode = _per_second(
        1, _seconds(resident, rates.ram), _seconds(work.vram, rates.vram), _seconds(work.paged, rates.disk)
    )
    gpu = _seconds(2 * work.gpu_weights * work.n_ubatch, rates.gpu_flops)
    sent = _seconds(work.weights_to_gpu, rates.pcie)
    on_gpu = None if gpu is None or sent is None else max(gpu, sent)
    on_cpu = _seconds(2 * work.cpu_weights * work.n_ubatch, rates.cpu_flops)
    prefill = _per_second(work.n_ubatch, on_gpu, on_cpu, _seconds(work.paged, rates.disk))
    return Speed(
        decode=decode,
        prefill=prefill,
        decode_formula=_formula(
            "1 / ({})",
            (resident, "B of RAM", rates.ram, "B/s"),
            (work.vram, "B of VRAM", rates.vram, "B/s"),
            (work.paged, "B from disk", rates.disk, "B/s"),
        ),
        prefill_formula=_formula(
            f"{work.n_ubatch} / ({{}})",
            (2 * work.cpu_weights * work.n_ubatch, "operations", rates.cpu_flops, "/s"),
            (2 * work.gpu_weights * work.n_ubatch, "operations on the GPU", rates.gpu_flops, "/s"),
            (work.weights_to_gpu, "B sent to it meanwhile", rates.pcie, "B/s"),
            (work.paged, "B from disk", rates.disk, "B/s"),
        ),
    )


def _seconds(amount: float, rate: float | None) -> float | None:
    """None if ``rate`` is not known and there is something to do."""
    return 0.0 if amount == 0 else amount / rate if rate else None


def _per_second(count: int, *seconds: float | None) -> float | None:
    known = [second for second in seconds if second is not None]
    return count / sum(known) if len(known) == len(seconds) and sum(known) > 0 else None


def _formula(pattern: str, *terms: tuple[float, str, float | None, str]) -> str:
    shown = [
        f"{amount:.3g} {what} / {f'{rate:.3g} {unit}' if rate else 'unknown'}"
        for amount, what, rate, unit in terms
        if amount
    ]
    return pattern.format(" + ".join(shown) or "nothing")


def measured_rates(n_threads: int, weights_type: int) -> Rates:
    """RAM bandwidth and arithmetic of this CPU, measured in a fifth of a second.

    Args:
        n_threads: that compute.
        weights_type: of the weights that are multiplied with, as in enum ggml_type.
    """
    from acestep_gguf.llama.product_speed import product_flops  # noqa: PLC0415 (loads llama.cpp)

    with ThreadPoolExecutor(n_threads) as pool:
        blocks = [np.ones(PROBE_BYTES // n_threads // 8, np.int64) for _ in range(n_threads)]
        seconds = math.inf
        for _ in range(PROBE_ROUNDS):
            started = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, blocks))
            seconds = min(seconds, time.perf_counter() - started)
    ram = sum(block.nbytes for block in blocks) / seconds
    return Rates(ram=ram, cpu_flops=product_flops(weights_type, n_threads))
