"""Layers of a tower or resampler as nodes of its ONNX graph, in float32 or in int8."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.weight import Weight
from acestep_gguf.convert.onnx_graph import MICROSOFT, OnnxGraph
from acestep_gguf.convert.tower.int8 import Divisors, Int8Inputs, Int8Layer, int8_product

# Activation in config.json -> ONNX operator. "gelu" is the exact one, with erf.
ACTIVATIONS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "gelu": ("Gelu", {}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    # x * sigmoid(x)
    "silu": ("QuickGelu", {"domain": MICROSOFT, "alpha": 1.0}),
    "quick_gelu": ("QuickGelu", {"domain": MICROSOFT, "alpha": 1.702}),
}

Tensors = Mapping[str, Weight]


@dataclass(slots=True)
class LinearInput:
    """What linear ``layers`` take; the step before them can divide its channels if ``is_foldable``."""

    is_foldable: bool
    layers: list[str] = field(default_factory=list)


class Layers:
    """Layers of ``tensors``, node by node; each method returns the name of its output.

    Which tensors there are tells which steps there are: a linear layer may have no bias, and a norm without
    one is an RMS norm. Linear layers whose input is among ``int8`` compute in int8, the rest in float32.
    ``linear_inputs`` fills up with what such layers take as they are built. ``eps`` is that of norms.
    """

    def __init__(self, tensors: Tensors, int8: Int8Inputs | None, eps: float) -> None:
        self.graph = OnnxGraph()
        self.linear_inputs: dict[str, LinearInput] = {}
        self._tensors = tensors
        self._int8 = int8 or {}
        self._eps = eps

    def linear_input(self, x: str, *, is_foldable: bool = False) -> str:
        """Note that linear layers take ``x``."""
        self.linear_inputs[x] = LinearInput(is_foldable)
        return x

    def linear(self, x: str, name: str, output: str | None = None) -> str:
        """``x`` through the linear layer ``name``."""
        output = output or name
        if f"{name}.bias" not in self._tensors:
            return self.product(x, name, output)
        bias = self.weight(f"{name}.bias")
        if x in self._int8:
            return self.product(x, name, output, bias=bias)
        return self.add(self.product(x, name, f"{name}.product"), bias, output)

    def product(
        self, x: str, name: str, output: str, *, bias: str = "", divisors: Divisors | None = None
    ) -> str:
        """``x`` times the weight of the linear layer ``name``; channels of the output are divided.

        Only a product in int8 takes a ``bias``.
        """
        tensor = self._tensors[f"{name}.weight"]
        if x in self.linear_inputs:
            self.linear_inputs[x].layers.append(name)
        plan = self._int8.get(x)

        def load() -> NDArray[np.float32]:
            """The weight as float32 [out, in]."""
            weight = tensor.read() if divisors is None else tensor.read() / divisors[:, np.newaxis]
            return weight if plan is None else weight * plan.divisors

        if plan is None:
            # MatMul wants [in, out].
            weight = self.graph.weight(f"{name}.weight", tensor.shape[::-1], lambda: load().T)
            return self.graph.node("MatMul", [x, weight], output)
        return int8_product(self.graph, x, Int8Layer(name, tensor.shape, load, bias), plan, output)

    def divisors(self, x: str) -> Divisors | None:
        """What the step that computes ``x`` divides its channels by."""
        return self._int8[x].divisors if x in self._int8 else None

    def norm(self, x: str, name: str, eps: float | None = None, output: str | None = None) -> str:
        """A layer norm, or an RMS norm, which has no bias."""
        divisors, output = self.divisors(name), output or name
        inputs = [x, self.weight(f"{name}.weight", divisors)]
        kind = "SimplifiedLayerNormalization"
        if f"{name}.bias" in self._tensors:
            inputs.append(self.weight(f"{name}.bias", divisors))
            kind = "LayerNormalization"
        return self.graph.node(kind, inputs, output, epsilon=eps or self._eps)

    def gated(self, x: str, prefix: str, activation: str) -> str:
        """Products of ``x`` with an MLP's two matrices, the one gated by the other."""
        up = self.linear(x, f"{prefix}up")
        gate = self.activation(activation, self.linear(x, f"{prefix}gate"), f"{prefix}act")
        return self.graph.node("Mul", [gate, up], f"{prefix}gated")

    def activation(self, activation: str, x: str, name: str) -> str:
        """``activation``, as config.json calls it, of ``x``."""
        op, attributes = ACTIVATIONS[activation]
        return self.graph.node(op, [x], name, **attributes)

    def add(self, left: str, right: str, name: str) -> str:
        """The sum of both."""
        return self.graph.node("Add", [left, right], name)

    def slice(self, x: str, name: str, *, axis: int, start: int, end: int = 2**31 - 1) -> str:
        """``x`` from ``start`` to ``end`` of one axis."""
        bounds = {"start": start, "end": end, "axis": axis}
        inputs = [self.graph.constant(f"{name}.{key}", [value]) for key, value in bounds.items()]
        return self.graph.node("Slice", [x, *inputs], name)

    def weight(self, name: str, divisors: Divisors | None = None) -> str:
        """The tensor ``name`` as it is, or divided."""
        tensor = self._tensors[name]
        return self.graph.weight(name, tensor.shape, lambda: divided(tensor.read(), divisors))


def divided(values: NDArray[np.float32], divisors: Divisors | None) -> NDArray[np.float32]:
    """``values`` over ``divisors``, if there are any."""
    return values if divisors is None else values / divisors
