"""An ONNX graph under construction: nodes, and weights that are streamed into an external data file.

Weights are loaded only while they are written, so that a tower is never in memory as a whole.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.errors import MissingPackageError
from acestep_gguf.quantize.staging import StagedFile

try:
    from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise MissingPackageError("onnx") from error

Weights = NDArray[np.float32] | NDArray[np.int8]
Shapes = Mapping[str, Sequence[str | int | None]]

DType = type[np.float32] | type[np.int8] | type[np.int32]
DATA_TYPES: Final[Mapping[DType, int]] = {
    np.float32: TensorProto.FLOAT, np.int8: TensorProto.INT8, np.int32: TensorProto.INT32,
}  # fmt: skip
OPSET: Final = 20  # the first with Gelu
IR_VERSION: Final = 9
MICROSOFT: Final = "com.microsoft"
DATA_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    shape: tuple[int, ...]
    offset: int
    load: Callable[[], Weights]
    dtype: type[np.float32] | type[np.int8]

    @property
    def n_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)

    def read(self) -> Weights:
        array = np.ascontiguousarray(self.load(), np.dtype(self.dtype).newbyteorder("<"))
        if array.shape != self.shape:
            raise ValueError(f"{self.name} has shape {array.shape}, not {self.shape}")
        return array


class OnnxGraph:
    """Nodes and weights. Methods that add something return the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._names: set[str] = set()
        self._constants: list[TensorProto] = []
        self._weights: list[_Weight] = []

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        also: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node whose first output is called ``name``, and further ones as in ``also``."""
        self._nodes.append(
            helper.make_node(op, list(inputs), [name, *also], name=name, domain=domain, **attributes)
        )
        self._names.add(name)
        return name

    def has_node(self, name: str) -> bool:
        """Whether there is a node called ``name``."""
        return name in self._names

    def constant(self, name: str, values: Sequence[int] | np.float32) -> str:
        """Add a small int64 vector, or one float32."""
        array = np.asarray(values) if isinstance(values, np.float32) else np.array(values, np.int64)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        load: Callable[[], Weights],
        dtype: type[np.float32] | type[np.int8] = np.float32,
    ) -> str:
        """Add a weight of ``shape``; ``load`` is called when the data file is written."""
        end = self._weights[-1].offset + self._weights[-1].n_bytes if self._weights else 0
        offset = -(-end // DATA_ALIGNMENT) * DATA_ALIGNMENT
        self._weights.append(_Weight(name, tuple(shape), offset, load, dtype))
        return name

    @property
    def n_weights(self) -> dict[str, int]:
        """Number of weights by type, such as "F32" or "I8"."""
        counts = Counter("F32" if weight.dtype is np.float32 else "I8" for weight in self._weights)
        return dict(counts.most_common())

    @property
    def bits_per_weight(self) -> float:
        """Mean over all elements of all weights."""
        n_bytes = sum(weight.n_bytes for weight in self._weights)
        return 8 * n_bytes / sum(prod(weight.shape) for weight in self._weights)

    @property
    def data_bytes(self) -> int:
        """Size of the data file."""
        return self._weights[-1].offset + self._weights[-1].n_bytes

    @property
    def largest_weight_bytes(self) -> int:
        """Size of the largest weight."""
        return max(weight.n_bytes for weight in self._weights)

    def write_data(self, file: StagedFile) -> None:
        """Stream all weights into ``file``."""
        for weight in self._weights:
            file.pad_to(weight.offset)
            file.write(weight.read().data)
            file.end_step()

    def read_weights(self) -> dict[str, Weights]:
        """All weights, by name, in memory."""
        return {weight.name: weight.read() for weight in self._weights}

    def to_model(
        self,
        *,
        name: str,
        inputs: Shapes,
        outputs: Shapes,
        data_file: str = "",
        dtypes: Mapping[str, DType] | None = None,
    ) -> ModelProto:
        """The model ``name``, whose weights lie in ``data_file`` beside it.

        Inputs and outputs are float32, but for the inputs in ``dtypes``.
        """
        types = {key: DATA_TYPES[dtype] for key, dtype in (dtypes or {}).items()}
        inputs_, outputs_ = (
            [
                helper.make_tensor_value_info(key, types.get(key, TensorProto.FLOAT), shape)
                for key, shape in side.items()
            ]
            for side in (inputs, outputs)
        )
        graph = helper.make_graph(
            self._nodes,
            name,
            inputs_,
            outputs_,
            [*self._constants, *(_external(weight, data_file) for weight in self._weights)],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, producer_name="acestep-gguf", ir_version=IR_VERSION, opset_imports=opsets
        )


def _external(weight: _Weight, data_file: str) -> TensorProto:
    tensor = TensorProto(
        name=weight.name,
        dims=weight.shape,
        data_type=DATA_TYPES[weight.dtype],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", data_file), ("offset", weight.offset), ("length", weight.n_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
