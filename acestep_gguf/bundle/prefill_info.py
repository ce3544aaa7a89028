"""What the graph of one decoder layer must be, and where the weights of each layer lie in the data file.

The graph takes its weights as inputs, so that one session serves all layers: each layer's weights, in the
order of these inputs, follow those of the layer before in the data file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from acestep_gguf.bundle.onnx_file import ELEMENT_BYTES, FLOAT, OnnxFile, Value, read_onnx
from acestep_gguf.bundle.schema import PrefillFile, check_file
from acestep_gguf.errors import BundleError

# Names in the graph, after those of GroupQueryAttention. A row of the tables of rotation is a position.
HIDDEN_STATES: Final = "hidden_states"
PAST_KEY: Final = "past_key"
PAST_VALUE: Final = "past_value"
SEQLENS_K: Final = "seqlens_k"
TOTAL_SEQUENCE_LENGTH: Final = "total_sequence_length"
COS_CACHE: Final = "cos_cache"
SIN_CACHE: Final = "sin_cache"
OUTPUT: Final = "output"
KEY: Final = "key"
VALUE: Final = "value"

STATES: Final = (
    HIDDEN_STATES, PAST_KEY, PAST_VALUE, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, COS_CACHE, SIN_CACHE,
)  # fmt: skip
INT8: Final = 3
WEIGHT_TYPES: Final = (FLOAT, INT8)
ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeight:
    """A weight of a layer: ``offset`` bytes behind where its layer begins."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return ELEMENT_BYTES[self.data_type] * prod(self.shape)

    @property
    def end(self) -> int:
        """Where the next weight begins."""
        return self.offset + -(-self.n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLayout:
    """The decoder that a graph computes one layer of, and the ``stride`` in bytes from layer to layer."""

    path: Path
    data: Path
    n_layers: int
    n_embd: int
    n_head_kv: int
    n_embd_head: int
    weights: tuple[LayerWeight, ...]
    stride: int


def lay_out(weights: Iterable[tuple[str, int, tuple[int, ...]]]) -> tuple[tuple[LayerWeight, ...], int]:
    """Places of a layer's weights, given by name, type (as in ONNX) and shape; and the stride."""
    placed: list[LayerWeight] = []
    end = 0
    for name, data_type, shape in weights:
        placed.append(LayerWeight(name=name, data_type=data_type, shape=shape, offset=end))
        end = placed[-1].end
    return tuple(placed), end


def check_prefill_file(folder: Path, record: PrefillFile) -> PrefillLayout:
    """The layout of the files in ``folder``, after they were checked, but for hashes.

    Raises:
        BundleError: one of them is missing, of a wrong size, damaged, or not what bundle.json says.
    """
    path, data = check_file(folder, record), check_file(folder, record.data)
    onnx = read_onnx(path)
    states = {value.name: value for value in onnx.inputs if value.name in STATES}
    weights = [value for value in onnx.inputs if value.name not in STATES]
    hidden, past = (states.get(name) for name in (HIDDEN_STATES, PAST_KEY))
    sizes = [*(_fixed(hidden, (0, 2))), *(_fixed(past, (0, 1, 3)))]
    if (
        len(states) != len(STATES)
        or [value.name for value in onnx.outputs] != [OUTPUT, KEY, VALUE]
        or len(sizes) != 5
        or any(weight.external for weight in onnx.initializers)
    ):
        raise _unsound(onnx, "it does not take and give what a layer does")
    placed, stride = lay_out((value.name, value.data_type, _weight_shape(onnx, value)) for value in weights)
    if stride * record.n_layers != record.data.bytes:
        raise _unsound(onnx, f"{record.n_layers} layers of its weights are not {record.data.file}")
    _, n_embd, _, n_head_kv, n_embd_head = sizes
    return PrefillLayout(
        path=path,
        data=data,
        n_layers=record.n_layers,
        n_embd=n_embd,
        n_head_kv=n_head_kv,
        n_embd_head=n_embd_head,
        weights=placed,
        stride=stride,
    )


def _fixed(value: Value | None, dimensions: tuple[int, ...]) -> list[int]:
    """Sizes of a float32 value in ``dimensions``; none where it is not of this kind."""
    if value is None or value.data_type != FLOAT or len(value.shape) <= dimensions[-1]:
        return []
    sizes = [value.shape[dimension] for dimension in dimensions]
    return [size for size in sizes if isinstance(size, int) and size > 0]


def _weight_shape(onnx: OnnxFile, value: Value) -> tuple[int, ...]:
    shape = tuple(size for size in value.shape if isinstance(size, int) and 0 < size < 2**31)
    if value.data_type not in WEIGHT_TYPES or len(shape) != len(value.shape) or len(shape) not in (1, 2):
        raise _unsound(onnx, f"its input {value.name!r} is no weight of a layer")
    return shape


def _unsound(onnx: OnnxFile, what: str) -> BundleError:
    return BundleError(f"{onnx.path} is damaged ({what}): convert the checkpoint again with prefill.")
