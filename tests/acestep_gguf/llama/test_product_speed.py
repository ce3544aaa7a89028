import pytest

from acestep_gguf.bundle.gguf_header import TENSOR_TYPES
from acestep_gguf.llama.product_speed import product_flops

NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_NL"])
def test_products_with_every_type_that_we_write_are_measured(name: str) -> None:
    flops = product_flops(NUMBERS[name], 1)
    assert flops is not None
    assert 1e7 < flops < 1e15


def test_there_is_memory_for_many_threads() -> None:
    assert product_flops(NUMBERS["Q4_K"], 48) is not None
