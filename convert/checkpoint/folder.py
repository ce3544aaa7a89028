"""A checkpoint folder: its JSON files, and its tensors over one or many safetensors files."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.convert.checkpoint.json_file import read_json, read_text
from acestep_gguf.convert.checkpoint.prequantized.formats import Unpacked, read_format, unpack
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile, SafetensorsTensor
from acestep_gguf.convert.checkpoint.supported import check_no_pipeline
from acestep_gguf.convert.checkpoint.weight import Weight
from acestep_gguf.errors import CheckpointError

CONFIG_FILE: Final = "config.json"
SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"

# Of each tensor, this much goes into the weights' hash: training moves every row that it touches.
N_SAMPLED_BYTES: Final = 4096
N_COMPARED_WEIGHTS: Final = 2**20


class Checkpoint:
    """An open checkpoint; a context that closes its files.

    Raises:
        CheckpointError: not a checkpoint.
        UnsupportedModelError: the folder of a music or diffusion pipeline.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            _check_is_checkpoint(folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be read ({error.strerror}): check its permissions."
            ) from error
        self.config = read_json(folder / CONFIG_FILE)
        self._files: list[SafetensorsFile] = []
        self._stored: dict[str, SafetensorsTensor] = {}
        self._unpacked = Unpacked({})

    @property
    def tensors(self) -> dict[str, Weight]:
        """The weights by name; those of a quantized checkpoint read as what they stand for."""
        return self._unpacked.weights

    @property
    def zero_biases(self) -> frozenset[str]:
        """Biases of nothing but zeros, which GPTQ stores for layers that have none."""
        return self._unpacked.zero_biases

    @property
    def quantization(self) -> str | None:
        """How the weights are quantized already, in a few words; None if they are not."""
        return self._unpacked.label

    @property
    def held_bytes(self) -> int:
        """Memory that reading packed weights holds on to, at most."""
        return self._unpacked.held_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def open_weights(self) -> None:
        """Read the headers of all weight files into ``tensors``.

        Raises:
            CheckpointError: missing or damaged, a tensor stands twice, or the index names what is not there.
            UnsupportedModelError: quantized in a way that is not read.
        """
        weight_map = self._read_index()
        for name in sorted(set(weight_map.values())) if weight_map else [SINGLE_FILE]:
            file = SafetensorsFile(self.folder / name)
            self._files.append(file)
            for tensor in file.tensors.values():
                if tensor.name in self._stored:
                    other = self._stored[tensor.name].file.path.name
                    raise CheckpointError(
                        f"tensor {tensor.name} is both in {other} and in {name}: remove one."
                    )
                self._stored[tensor.name] = tensor
        for name, file_name in weight_map.items():
            if name not in self._stored or self._stored[name].file.path.name != file_name:
                raise CheckpointError(f"{INDEX_FILE} says that {file_name} has {name}, but it has not.")
        self._unpacked = unpack(self._stored, read_format(self.config, self.folder))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file ``name``, None when there is no such file."""
        path = self.folder / name
        return read_json(path) if path.exists() else None

    def read_text(self, name: str) -> str | None:
        """The text in the file ``name``, None when there is no such file."""
        path = self.folder / name
        return read_text(path) if path.exists() else None

    def config_sha256(self) -> str:
        """Hash of config.json."""
        return hashlib.sha256(read_text(self.folder / CONFIG_FILE).encode()).hexdigest()

    def weights_sha256(self) -> str:
        """Hash over names, dtypes, shapes and first bytes of all stored tensors: tells fine-tunes apart."""
        digest = hashlib.sha256()
        for name in sorted(self._stored):
            tensor = self._stored[name]
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.read_bytes(0, N_SAMPLED_BYTES).data)
        return digest.hexdigest()

    @staticmethod
    def are_equal(left: Weight, right: Weight) -> bool:
        """Whether two matrices hold the same weights."""
        if left.shape != right.shape or len(left.shape) != 2 or 0 in left.shape:
            return False
        n_rows, step = left.shape[0], max(1, N_COMPARED_WEIGHTS // left.shape[1])
        chunks = ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))
        return all(np.array_equal(left.read_rows(*chunk), right.read_rows(*chunk)) for chunk in chunks)

    def _read_index(self) -> dict[str, str]:
        """Tensor name to file name; empty for a checkpoint in a single file."""
        if (self.folder / SINGLE_FILE).exists():
            return {}
        if not (self.folder / INDEX_FILE).exists():
            raise CheckpointError(
                f"{self.folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: "
                "get the weights as safetensors (pickled .bin and .pt files are not read)."
            )
        weight_map = read_json(self.folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{INDEX_FILE} has no weight_map: get an undamaged checkpoint.")
        for name, file_name in weight_map.items():
            if not isinstance(file_name, str) or not _is_shard_name(file_name):
                raise CheckpointError(
                    f"{INDEX_FILE} puts {name} into {file_name!r}, which is no weight file here."
                )
        return weight_map


def _check_is_checkpoint(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: give the folder of a Hugging Face checkpoint.")
    if (folder / BUNDLE_FILE).exists():
        raise CheckpointError(f"{folder} is a bundle already: give the checkpoint that it was made from.")
    if not (folder / CONFIG_FILE).exists():
        check_no_pipeline(folder)
        raise CheckpointError(f"{folder} has no config.json: give the folder of a Hugging Face checkpoint.")


def _is_shard_name(name: str) -> bool:
    return name.endswith(".safetensors") and not any(char in name for char in "/\\:\0")
