"""The files that read prompts in int8: planned to the byte, then written layer by layer."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from acestep_gguf.bundle.names import PREFILL_FILE
from acestep_gguf.bundle.onnx_file import FLOAT
from acestep_gguf.bundle.prefill_info import INT8, LayerWeight, lay_out
from acestep_gguf.bundle.schema import FileRecord, PrefillFile
from acestep_gguf.convert.checkpoint.config import TextConfig
from acestep_gguf.convert.checkpoint.weight import Weight
from acestep_gguf.convert.int8_layers.layer_graph import LayerGraph
from acestep_gguf.convert.onnx_graph import DATA_TYPES
from acestep_gguf.quantize.conversion_events import PlannedFile
from acestep_gguf.quantize.staging import Staging

DATA_FILE: Final = f"{PREFILL_FILE}.data"
ROWS_AT_ONCE: Final = 512
MOST: Final = 127  # of int8: as far below zero as above

# The matrices of a layer by what they are made of: those that take the same input may be one.
MATRICES: Final = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "attn_output": ("attn_output",),
    "ffn_gate": ("ffn_gate",),
    "ffn_up": ("ffn_up",),
    "ffn_down": ("ffn_down",),
}
TYPE_NAMES: Final = {FLOAT: "F32", INT8: "I8"}

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPrefill:
    """What is going to be written: the graph ``model`` of one layer, and the weights of all.

    Each layer's lie in its ``stride`` bytes as ``layout`` says; ``tensors`` are the decoder's. ``identity``
    stands for everything else that decides the bytes.
    """

    model: bytes
    layout: tuple[LayerWeight, ...]
    stride: int
    n_layers: int
    tensors: Mapping[str, Weight]
    identity: str

    @property
    def data_bytes(self) -> int:
        """Size of the weights' file."""
        return self.n_layers * self.stride

    @property
    def memory(self) -> int:
        """About what making it takes, in bytes: a matrix, and some rows as they are read."""
        widest = max((weight.shape[0] for weight in self.layout if len(weight.shape) == 2), default=0)
        return max(weight.n_bytes for weight in self.layout) + 4 * 4 * ROWS_AT_ONCE * widest

    def planned_files(self) -> Iterator[PlannedFile]:
        """What a person or a program is told of both files."""
        types = Counter(TYPE_NAMES[weight.data_type] for weight in self.layout for _ in range(self.n_layers))
        n_weights = sum(int(np.prod(weight.shape)) for weight in self.layout)
        for file, n_bytes, counts in (
            (DATA_FILE, self.data_bytes, dict(types.most_common())),
            (PREFILL_FILE, len(self.model), {}),
        ):
            yield PlannedFile(
                file=file,
                label="prefill",
                bytes=n_bytes,
                bytes_kept=0,
                bits_per_weight=8 * self.stride / n_weights if counts else 0.0,
                types=counts,
                fallbacks={},
            )

    def write(self, staging: Staging) -> PrefillFile:
        """Write both files, or carry on with the weights.

        Raises:
            CheckpointError: a weight is not finite.
        """
        stamps = [
            ",".join(source.stamp for source in self._sources(bid, weight))
            for bid in range(self.n_layers)
            for weight in self.layout
        ]
        data = staging.create_resumable(DATA_FILE, identity=self.identity, stamps=stamps)
        for bid in range(data.n_steps // len(self.layout), self.n_layers):
            for weight, array in self._arrays(bid, self.layout[data.n_steps % len(self.layout) :]):
                data.write(array.data)
                data.pad_to(bid * self.stride + weight.end)
                data.end_step()
        file = staging.create(PREFILL_FILE)
        file.write(self.model)
        return PrefillFile(
            file=PREFILL_FILE,
            bytes=file.n_bytes,
            sha256=file.sha256,
            data=FileRecord(file=DATA_FILE, bytes=data.n_bytes, sha256=data.sha256),
            n_layers=self.n_layers,
        )

    def _arrays(
        self, bid: int, weights: Sequence[LayerWeight]
    ) -> Iterator[tuple[LayerWeight, NDArray[np.generic]]]:
        """What ``weights``, the last ones of a layer, are."""
        scale: Floats | None = None
        for weight in weights:
            sources = self._sources(bid, weight)
            if weight.data_type == INT8:
                matrix, scale = _int8(sources)
                yield weight, matrix
            elif weight.name.endswith(".scale"):
                yield weight, _int8(sources)[1] if scale is None else scale
            else:
                yield weight, np.concatenate([source.read() for source in sources])

    def _sources(self, bid: int, weight: LayerWeight) -> list[Weight]:
        """The decoder's tensors that a weight of a layer is made from; a scale is its matrix's."""
        name, _, kind = weight.name.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        return [self.tensors[f"blk.{bid}.{part}.{kind}"] for part in MATRICES.get(name, (name,))]


def plan_prefill(config: TextConfig, tensors: Mapping[str, Weight], *source: str) -> PlannedPrefill:
    """The files for the decoder ``tensors``; ``source`` are hashes of the checkpoint."""
    graph = LayerGraph(
        config,
        has_bias="blk.0.attn_q.bias" in tensors,
        has_qk_norm="blk.0.attn_q_norm.weight" in tensors,
    )
    model = graph.to_bytes()
    layout, stride = lay_out(
        (name, DATA_TYPES[dtype], shape) for name, (shape, dtype) in graph.weights.items()
    )
    parts = [version("acestep-gguf"), *source]
    return PlannedPrefill(
        model=model,
        layout=layout,
        stride=stride,
        n_layers=config.num_hidden_layers,
        tensors=tensors,
        identity=hashlib.sha256(msgspec.json.encode(parts) + model).hexdigest(),
    )


def _int8(sources: Sequence[Weight]) -> tuple[NDArray[np.int8], Floats]:
    """The matrices of ``sources``, one below the other, as int8 [in, out], and float32 [out] to multiply by.

    Each output has a scale of its own, so that its largest weight becomes 127 or -127.

    Raises:
        CheckpointError: see Weight.
    """
    n_in, n_out = sources[0].shape[1], sum(source.shape[0] for source in sources)
    matrix, scales = np.empty((n_in, n_out), np.int8), np.empty(n_out, np.float32)
    first = 0
    for source in sources:
        for start in range(0, source.shape[0], ROWS_AT_ONCE):
            rows = source.read_rows(start, min(start + ROWS_AT_ONCE, source.shape[0]))
            scale = np.abs(rows).max(axis=1) / MOST
            stop = first + len(rows)
            scales[first:stop] = scale
            matrix[:, first:stop] = np.rint(rows.T / np.where(scale, scale, 1))
            first = stop
    return matrix, scales
