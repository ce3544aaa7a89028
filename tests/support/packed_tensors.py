"""Tensors of quantized checkpoints, and tiny checkpoints whose linear layers are replaced by them."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile, SafetensorsTensor
from tests.support.quantized_formats import awq, fp8, gptq
from tests.support.tiny_checkpoints import TinyCheckpoint, encode

Matrix = NDArray[np.float32]
# Dtype as safetensors calls it, and the array as it is stored; "BF16" takes float32.
Stored = tuple[str, NDArray[Any]]

DTYPES = {"float16": "F16", "float32": "F32", "int32": "I32", "int8": "I8", "uint8": "U8"}

# bitsandbytes/functional.py, get_4bit_type: nf4 and fp4.
CODES = {
    "nf4": np.array(
        [
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        ],
        np.float32,
    ),
    "fp4": np.array(
        [sign * code / 12 for sign in (1, -1) for code in (0, 0.0625, 8, 12, 4, 6, 2, 3)], np.float32
    ),
}
BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256


def by_dtype(tensors: Mapping[str, NDArray[Any]], **dtypes: str) -> dict[str, Stored]:
    """``tensors`` with the dtypes of their arrays, but for those named in ``dtypes``."""
    return {
        name: (dtypes.get(name, DTYPES.get(array.dtype.name, "")), array) for name, array in tensors.items()
    }


def four_bit(weight: Matrix, quant_type: str, *, nested: bool) -> dict[str, Stored]:
    """What bitsandbytes' serializer makes of a matrix, by the suffix behind its name."""
    flat = np.pad(weight.ravel(), (0, -weight.size % BLOCK_SIZE)).reshape(-1, BLOCK_SIZE)
    absmax = np.maximum(np.abs(flat).max(axis=1), np.float32(1e-12))
    state: dict[str, Any] = {"quant_type": quant_type, "blocksize": BLOCK_SIZE, "dtype": "bfloat16"}
    state["shape"] = list(weight.shape)
    codes = np.abs(flat[..., np.newaxis] / absmax[:, np.newaxis, np.newaxis] - CODES[quant_type]).argmin(
        axis=2
    )
    codes = np.pad(codes.ravel()[: weight.size], (0, weight.size % 2)).astype(np.uint8)
    tensors: dict[str, NDArray[Any]] = {
        "": (codes[::2] << 4 | codes[1::2])[:, np.newaxis],
        ".quant_map": CODES[quant_type],
        ".absmax": absmax,
    }
    if nested:
        nested_map = np.linspace(-1, 1, 256, dtype=np.float32)
        offset = absmax.mean()
        blocks = np.pad(absmax - offset, (0, -len(absmax) % NESTED_BLOCK_SIZE)).reshape(-1, NESTED_BLOCK_SIZE)
        nested_absmax = np.maximum(np.abs(blocks).max(axis=1), np.float32(1e-12))
        each = (blocks / nested_absmax[:, np.newaxis]).ravel()[: len(absmax)]
        tensors[".absmax"] = np.abs(each[:, np.newaxis] - nested_map).argmin(axis=1).astype(np.uint8)
        tensors |= {".nested_absmax": nested_absmax, ".nested_quant_map": nested_map}
        state |= {
            "nested_blocksize": NESTED_BLOCK_SIZE,
            "nested_dtype": "float32",
            "nested_offset": float(offset),
        }
    tensors[f".quant_state.bitsandbytes__{quant_type}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return by_dtype(tensors)


def eight_bit(weight: Matrix) -> dict[str, Stored]:
    """What bitsandbytes' Linear8bitLt stores, by the suffix that replaces "weight"."""
    scb = np.abs(weight).max(axis=1)
    numbers = np.round(weight * (127 / scb[:, np.newaxis])).astype(np.int8)
    return by_dtype({"weight": numbers, "SCB": scb, "weight_format": np.array(0, np.uint8)})


@dataclass(frozen=True)
class Method:
    """``pack`` gives the tensors for a matrix by their names; ``packs`` says of which names."""

    config: dict[str, Any]
    pack: Callable[[str, Matrix], dict[str, Stored]]
    packs: Callable[[str], bool] = lambda name: (
        ".layers." in name and "proj.weight" in name and "language" in name
    )
    label: str = ""


def _suffixed(name: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name.removesuffix("weight") + suffix: stored for suffix, stored in tensors.items()}


def _with_zero_bias(name: str, weight: Matrix, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Stored]:
    """As AutoGPTQ does it: there is a bias for each layer, also for those that have none."""
    packed = _suffixed(name, by_dtype(tensors))
    has_bias = any(layer in name for layer in ("q_proj", "k_proj", "v_proj"))
    bias = np.zeros(len(weight), np.float16)
    return packed if has_bias else {**packed, f"{name.removesuffix('weight')}bias": ("F16", bias)}


def _any_linear(name: str) -> bool:
    return name.endswith((".weight",)) and any(part in name for part in ("_proj.", "mlp.fc", "linear_"))


METHODS: dict[str, Method] = {
    "awq": Method(
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
        lambda name, weight: _suffixed(name, by_dtype(awq(weight, 64))),
        label="AWQ 4-bit, groups of 64",
    ),
    "gptq": Method(
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True},
        lambda name, weight: _with_zero_bias(
            name,
            weight,
            gptq(weight, 4, 128, column_order=np.random.default_rng(0).permutation(weight.shape[1])),
        ),
        label="GPTQ 4-bit, groups of 128",
    ),
    "gptq-8bit": Method(
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "checkpoint_format": "gptq_v2"},
        lambda name, weight: _with_zero_bias(name, weight, gptq(weight, 8, 128, subtracted=0)),
        label="GPTQ 8-bit, groups of 128",
    ),
    "bitsandbytes-nf4": Method(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        lambda name, weight: {
            f"{name}{suffix}": stored for suffix, stored in four_bit(weight, "nf4", nested=True).items()
        },
        _any_linear,
        label="bitsandbytes 4-bit nf4",
    ),
    "bitsandbytes-int8": Method(
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        lambda name, weight: _suffixed(name, eight_bit(weight)),
        _any_linear,
        label="bitsandbytes 8-bit",
    ),
    "fp8": Method(
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        lambda name, weight: _suffixed(name, by_dtype(fp8(weight), weight="F8_E4M3")),
        label="FP8, blocks of 128 x 128",
    ),
}


def write_packed(tiny: TinyCheckpoint, folder: Path, method: Method) -> Path:
    """Write the checkpoint ``tiny`` with the linear layers that ``method`` packs, and return its folder."""
    tiny.write(folder)
    tensors: dict[str, Stored] = {}
    for name, weight in tiny.tensors().items():
        tensors |= method.pack(name, weight) if method.packs(name) else {name: (tiny.dtype, weight)}
    write_stored(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method.config}))
    return folder


def write_stored(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write a safetensors file of any dtypes."""
    header: dict[str, Any] = {}
    blobs, end = [], 0
    for name, (dtype, array) in tensors.items():
        blob = encode(array, "BF16") if dtype == "BF16" else array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + len(blob)]}
        end += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def open_stored(path: Path, tensors: Mapping[str, Stored]) -> dict[str, SafetensorsTensor]:
    """Write a safetensors file, and open it until nobody needs its tensors any more."""
    write_stored(path, tensors)
    file = SafetensorsFile(path)
    finalize(file, os.close, file._fd)
    return file.tensors
