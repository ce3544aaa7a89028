"""Quantized weights next to the CPU code of the libraries that define them: bitsandbytes and transformers.

bitsandbytes' matrices are quantized by itself. AutoAWQ and AutoGPTQ are no longer kept up with transformers,
so their formats have only the readings of their published layouts in tests/convert/checkpoint/prequantized.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.prequantized.bitsandbytes import BitsAndBytes
from acestep_gguf.convert.checkpoint.prequantized.fp8 import Fp8
from tests.support.packed_tensors import by_dtype, open_stored
from tests.support.quantized_formats import fp8

pytestmark = pytest.mark.parity

SHAPES = [(64, 256), (33, 65), (300, 129)]


def matrix(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def numpy_arrays(tensors: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(("nested", "blocksize"), [(False, 64), (True, 64), (True, 128)])
def test_four_bits_are_dequantized_as_by_bitsandbytes(
    tmp_path: Path, shape: tuple[int, int], quant_type: str, nested: bool, blocksize: int
) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.from_numpy(matrix(shape)),
        blocksize=blocksize,
        compress_statistics=nested,
        quant_type=quant_type,
    )
    tensors = {
        "weight": packed,
        **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()},
    }
    stored = open_stored(tmp_path / "a.safetensors", by_dtype(numpy_arrays(tensors)))
    (weight,) = BitsAndBytes.from_settings({}).weights(stored)
    expected = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(weight.read(), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_dequantized_as_by_bitsandbytes(tmp_path: Path, shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    numbers, scb, _ = functional.int8_vectorwise_quant(torch.from_numpy(matrix(shape)))
    tensors = numpy_arrays({"weight": numbers, "SCB": scb})
    stored = open_stored(
        tmp_path / "a.safetensors", by_dtype({f"q.{name}": one for name, one in tensors.items()})
    )
    (weight,) = BitsAndBytes.from_settings({}).weights(stored)
    expected = functional.int8_vectorwise_dequant(numbers, scb).numpy()
    np.testing.assert_array_equal(weight.read(), expected)


def test_fp8_is_dequantized_as_by_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    fp8_module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    tensors = fp8(matrix((256, 384)))
    stored = open_stored(tmp_path / "a.safetensors", by_dtype(tensors, weight="F8_E4M3"))
    (weight,) = Fp8.from_settings({}).weights(stored)
    codes = torch.from_numpy(tensors["weight"]).view(torch.float8_e4m3fn)
    scales = torch.from_numpy(tensors["weight_scale_inv"])
    expected = fp8_module.Fp8Dequantize(None)._dequantize_one(codes, scales).numpy()
    np.testing.assert_array_equal(weight.read(), expected)


def test_every_fp8_code_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from acestep_gguf.convert.checkpoint.prequantized.fp8 import E4M3FN

    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    np.testing.assert_array_equal(E4M3FN, codes.float().numpy())
