"""The formats of quantized checkpoints that are read, by ``quantization_config.quant_method``."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from acestep_gguf.convert.checkpoint.prequantized.awq import Awq
from acestep_gguf.convert.checkpoint.prequantized.bitsandbytes import BitsAndBytes
from acestep_gguf.convert.checkpoint.prequantized.fp8 import Fp8
from acestep_gguf.convert.checkpoint.prequantized.gptq import Gptq
from acestep_gguf.convert.checkpoint.prequantized.grouped_weight import held_bytes
from acestep_gguf.convert.checkpoint.prequantized.packed_weight import PackedWeight, Stored
from acestep_gguf.convert.checkpoint.weight import CheckpointWeights
from acestep_gguf.errors import CheckpointError, UnsupportedModelError


class Format(Protocol):
    """A way in which a checkpoint is quantized."""

    def label(self) -> str:
        """Name of the format for people, such as "AWQ 4-bit, groups of 128"."""

    def weights(self, stored: Stored) -> Iterator[PackedWeight]:
        """The weights that ``stored`` holds.

        Raises:
            CheckpointError: tensors are missing, damaged or do not fit together.
            UnsupportedModelError: in a layout that is not read.
        """


# Each takes quantization_config. Which modules it leaves out does not matter: what is stored shows it.
FORMATS: Final[dict[str, Callable[[Mapping[str, Any]], Format]]] = {
    "awq": Awq.from_settings,
    "gptq": Gptq.from_settings,
    "bitsandbytes": BitsAndBytes.from_settings,
    "fp8": Fp8.from_settings,
}
# Where config.json of a model of several parts may say it.
PARTS: Final = ("text_config", "vision_config")


def read_format(config: Mapping[str, Any], folder: Path) -> Format | None:
    """The format that config.json names; None if the checkpoint is not quantized.

    Raises:
        CheckpointError: a setting is missing or damaged, or the parts differ.
        UnsupportedModelError: a method or a kind of it that is not read.
    """
    parts = [config, *(part for key in PARTS if isinstance(part := config.get(key), dict))]
    found = [part["quantization_config"] for part in parts if part.get("quantization_config") is not None]
    if not found:
        return None
    settings, *others = found
    if any(other != settings for other in others) or not isinstance(settings, dict):
        raise CheckpointError(
            f"{folder}/config.json: quantization_config is not an object, or there are two that differ: "
            "get an undamaged checkpoint."
        )
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in FORMATS:
        raise UnsupportedModelError(
            f"{folder} is quantized by {method!r}, which is not read, only {', '.join(FORMATS)} are: "
            "convert the bfloat16, float16 or float32 checkpoint."
        )
    return FORMATS[method](settings)


def unpack(stored: Stored, quantized: Format | None) -> CheckpointWeights:
    """The weights that ``stored`` tensors stand for.

    Raises:
        CheckpointError: tensors are missing, damaged or do not fit together.
        UnsupportedModelError: in a layout that is not read.
    """
    packed = {weight.name: weight for weight in quantized.weights(stored)} if quantized else {}
    if not packed or quantized is None:
        return CheckpointWeights(tensors=stored, stored=stored)
    parts = {part.name for weight in packed.values() for part in weight.parts}
    plain = {name: tensor for name, tensor in stored.items() if name not in parts}
    if twice := packed.keys() & plain.keys():
        raise CheckpointError(f"tensor {min(twice)} is stored packed and a second time unpacked: remove one.")
    return CheckpointWeights(
        tensors={**plain, **packed},
        stored=stored,
        quantization=quantized.label(),
        zero_biases=frozenset(_zero_biases(stored, packed)),
        held_bytes=held_bytes(packed.values()),
    )


def _zero_biases(stored: Stored, packed: Mapping[str, PackedWeight]) -> Iterator[str]:
    for name, weight in packed.items():
        bias = stored.get(f"{name.removesuffix('weight')}bias")
        if bias is not None and bias.shape == weight.shape[:1] and not bias.read().any():
            yield bias.name
