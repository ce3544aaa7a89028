"""The weight files of a checkpoint, one or many, opened together."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from acestep_gguf.convert.checkpoint.json_file import read_json
from acestep_gguf.convert.checkpoint.prequantized.formats import Format, unpack
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile, SafetensorsTensor
from acestep_gguf.convert.checkpoint.weight import CheckpointWeights
from acestep_gguf.errors import CheckpointError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"


@contextmanager
def open_weights(folder: Path, quantized: Format | None) -> Iterator[CheckpointWeights]:
    """The weights of the checkpoint in ``folder``, which is ``quantized`` so; they can be read inside.

    Raises:
        CheckpointError: missing or damaged, a tensor stands twice, or the index names what is not there.
        UnsupportedModelError: quantized in a way that is not read.
    """
    weight_map = _read_index(folder)
    stored: dict[str, SafetensorsTensor] = {}
    with ExitStack() as files:
        for file_name in sorted(set(weight_map.values())) if weight_map else [SINGLE_FILE]:
            file = files.enter_context(SafetensorsFile(folder / file_name))
            for tensor in file.tensors.values():
                if tensor.name in stored:
                    other = stored[tensor.name].file.path.name
                    raise CheckpointError(
                        f"tensor {tensor.name} is both in {other} and in {file_name}: remove one."
                    )
                stored[tensor.name] = tensor
        for name, file_name in weight_map.items():
            if name not in stored or stored[name].file.path.name != file_name:
                raise CheckpointError(
                    f"{INDEX_FILE} says that {name} is in {file_name}, but it is not: get it whole."
                )
        yield unpack(stored, quantized)


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name to file name; empty for a checkpoint in a single file."""
    if (folder / SINGLE_FILE).exists():
        return {}
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: "
            "get the weights as safetensors (pickled .bin and .pt files are not read)."
        )
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map: get an undamaged checkpoint.")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_shard_name(file_name):
            raise CheckpointError(
                f"{INDEX_FILE} puts {name} into {file_name!r}, which cannot be a weight file of this folder: "
                "get an undamaged checkpoint."
            )
    return weight_map


def _is_shard_name(name: str) -> bool:
    return name.endswith(".safetensors") and not any(char in name for char in "/\\:\0")
