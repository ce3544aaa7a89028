"""An ONNX graph under construction: nodes, and float32 weights that are streamed into an external data file.

Weights are loaded only while they are written, so that a tower is never in memory as a whole.
"""

from collections.abc import Callable, Sequence
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

OPSET: Final = 20  # the first with Gelu
IR_VERSION: Final = 9
MICROSOFT: Final = "com.microsoft"
DATA_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    shape: tuple[int, ...]
    offset: int
    load: Callable[[], NDArray[np.float32]]

    @property
    def n_bytes(self) -> int:
        return 4 * prod(self.shape)


class OnnxGraph:
    """Nodes and weights. Methods that add something return the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._weights: list[_Weight] = []

    def node(self, op: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node whose only output is called ``name``."""
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Add a small int64 vector."""
        self._constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def weight(self, name: str, shape: Sequence[int], load: Callable[[], NDArray[np.float32]]) -> str:
        """Add a float32 weight of ``shape``; ``load`` is called once, when the data file is written."""
        end = self._weights[-1].offset + self._weights[-1].n_bytes if self._weights else 0
        offset = -(-end // DATA_ALIGNMENT) * DATA_ALIGNMENT
        self._weights.append(_Weight(name, tuple(shape), offset, load))
        return name

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return len(self._weights)

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
            array = np.ascontiguousarray(weight.load(), "<f4")
            if array.shape != weight.shape:
                raise ValueError(f"{weight.name} has shape {array.shape}, not {weight.shape}")
            file.pad_to(weight.offset)
            file.write(array.data)
            file.end_step()

    def to_model(
        self,
        *,
        inputs: dict[str, Sequence[str | int]],
        outputs: dict[str, Sequence[str | int]],
        data_file: str,
    ) -> ModelProto:
        """The model, whose weights lie in ``data_file`` beside it; inputs and outputs are float32."""
        graph = helper.make_graph(
            self._nodes,
            "vision",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
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
        data_type=TensorProto.FLOAT,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", data_file), ("offset", weight.offset), ("length", weight.n_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
