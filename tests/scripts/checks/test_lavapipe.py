"""What of the check on lavapipe can be run without it: how it compares."""

import math
from typing import Any

import numpy as np
import pytest

from acestep_gguf.llama.params import ContextParams
from acestep_gguf.quality.measures import kl_divergences
from scripts.checks.lavapipe import largest_bytes, size_pairs
from scripts.checks.simulated_load import Load, is_ram

MIB = 2**20


def part(name: str, n_bytes: int, device: int) -> dict[str, Any]:
    return {"name": name, "n_bytes": n_bytes, "device": device}


def test_the_divergence_is_that_of_the_probabilities() -> None:
    one, other = np.log(np.array([[[0.5, 0.5]], [[0.25, 0.75]]], np.float32)) + 3
    assert kl_divergences(one, other) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert kl_divergences(one, one) == 0


def test_planned_bytes_stand_alone_where_llama_cpp_logged_as_many() -> None:
    parts = [
        part("output matrix", MIB, 1),
        part("2 of 4 layers", 2 * MIB, 1),
        part("KV cache", MIB, 1),
        part("compute buffer", 8 * MIB, 1),
        part("reserve", 1024 * MIB, 1),
        part("2 of 4 layers", 5 * MIB, 0),
        part("compute buffer", MIB, 0),
        part("output buffer", MIB // 2, 0),
    ]
    buffers = [
        ("CPU_Mapped", "model", "5.00"),
        ("Vulkan0", "model", "3.00"),
        ("Vulkan0", "KV", "1.00"),
        ("Vulkan0", "compute", "7.50"),
        ("Vulkan_Host", "compute", "1.00"),
        ("Vulkan_Host", "output", "0.50"),
    ]
    found = {"plan": {"parts": parts}, "buffers": buffers}
    assert list(size_pairs(found)) == [
        "3,145,728",
        "1,048,576",
        "8,388,608, NOT 7.50 MiB",
        "1,572,864",
    ]


def test_buffers_of_the_host_lie_in_ram() -> None:
    assert [name for name in ("CPU", "CPU_Mapped", "CUDA_Host", "CUDA0", "Vulkan0") if is_ram(name)] == [
        "CPU",
        "CPU_Mapped",
        "CUDA_Host",
    ]


def test_without_flash_attention_all_scores_lie_in_one_tensor() -> None:
    context = ContextParams(n_ctx=4096, n_ubatch=512, flash_attn="off")
    assert largest_bytes(Load(context)) == 4 * 8 * 512 * 4096
    assert largest_bytes(Load(ContextParams(n_ctx=4096, n_ubatch=512, flash_attn="on"))) == 2 * 512 * 4096
