"""Linear layers in int8: which channels of their inputs would ruin it, and what is done about them.

onnxruntime's DynamicQuantizeMatMul quantizes an input to uint8 with one step for all of it, so that one large
channel makes the step too coarse for the others. Three remedies, each taken only where it is needed:

1. The step before the layer (a norm, or the values of attention) divides large channels, and the layer's
   weights are multiplied by the same. It costs nothing (SmoothQuant, arXiv 2211.10438).
2. Large channels are multiplied in float32, beside the int8 product of the rest (LLM.int8(), arXiv
   2208.07339).
3. The layer stays in float32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.onnx_graph import MICROSOFT, OnnxGraph

Floats = NDArray[np.float32]
Divisors = Floats

# Relative errors of a layer's products. Normal weights and inputs without outliers have about 0.015.
GOOD_ERROR: Final = 0.02
BAD_ERROR: Final = 0.05
# Channels that are multiplied in float32, at most: one of so many.
OUTLIER_SHARE: Final = 32
# Halvings of the largest channel that are tried as the limit of all channels.
MAX_HALVINGS: Final = 12
# How much of the difference between channels is moved into the weights: 1 is all of it. SmoothQuant's alpha.
MIGRATIONS: Final = (0.5, 0.6, 0.7, 0.85, 1.0)
LEAST_CHANNEL: Final = 1e-4  # of the largest one


@dataclass(frozen=True, slots=True, eq=False)
class Int8Input:
    """How an input of n channels is quantized for the linear layers that take it.

    Args:
        divisors: float32 [n]; the step before has divided by them, weights are multiplied.
        outliers: numbers of the channels that are multiplied in float32.
    """

    divisors: Divisors
    outliers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """A linear layer; ``load`` reads its weight, [out, in], with divisors in it. ``bias`` may be ""."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Floats]
    bias: str


# By the name of the input in the graph; what is missing stays in float32.
Int8Inputs = Mapping[str, Int8Input]


class ChannelStatistics:
    """What the channels of an input were on some pictures: float64 [n] each."""

    def __init__(self, n_channels: int) -> None:
        self.low = np.zeros(n_channels)  # the range that is quantized includes 0
        self.high = np.zeros(n_channels)
        self._n = 0
        self._sum = np.zeros(n_channels)
        self._squares = np.zeros(n_channels)

    def add(self, x: Floats) -> None:
        """Count values [..., n_channels]."""
        rows = x.reshape(-1, x.shape[-1])
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        self._n += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._squares += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)

    @property
    def largest(self) -> NDArray[np.float64]:
        """Largest magnitudes."""
        return np.maximum(-self.low, self.high)

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Means of the squares."""
        return self._squares / self._n

    @property
    def variance(self) -> NDArray[np.float64]:
        """What the channels tell: a large one that never changes tells nothing."""
        return np.maximum(self.mean_square - (self._sum / self._n) ** 2, 0)


class LinearWeights:
    """What the error of linear layers depends on, of the layers that take one input of n channels.

    Args:
        weights: of each layer, float32 [out, n].
    """

    def __init__(self, weights: Iterable[Floats]) -> None:
        self.magnitudes = np.concatenate([np.abs(weight) for weight in weights])  # [all outputs, n]
        self.squares = np.einsum("ij,ij->j", self.magnitudes, self.magnitudes, dtype=np.float64)

    def largest(self, divisors: Divisors) -> NDArray[np.float64]:
        """Largest magnitude of each output's weights once they are multiplied by ``divisors``."""
        largest: NDArray[np.float64] = (self.magnitudes * divisors).max(axis=1).astype(np.float64)
        return largest


def predicted_error(channels: ChannelStatistics, weights: LinearWeights, plan: Int8Input) -> float:
    """RMS error of the products over the RMS of what they tell, from rounding to steps: step²/12 each."""
    kept = np.ones(len(channels.low), bool)
    kept[list(plan.outliers)] = False
    divisors = plan.divisors
    span = (channels.high / divisors)[kept].max(initial=0) - (channels.low / divisors)[kept].min(initial=0)
    input_noise = (span / 255) ** 2 / 12 * (divisors**2 * weights.squares)[kept].sum()
    weight_steps = weights.largest(divisors) / 127
    weight_noise = (weight_steps**2).sum() / 12 * (channels.mean_square / divisors**2)[kept].sum()
    signal = (channels.variance * weights.squares).sum()
    return float(np.sqrt((input_noise + weight_noise) / signal)) if signal > 0 else 0.0


def plan_input(
    channels: ChannelStatistics, weights: LinearWeights, *, is_foldable: bool
) -> tuple[Int8Input, float]:
    """How to quantize an input, and the error that is left.

    The divisors are the best that were tried; of float32 channels there are as few as give a good error.
    """
    plan = Int8Input(np.ones(len(channels.low), np.float32))
    error = predicted_error(channels, weights, plan)
    candidates = (*_limiting(channels), *_migrating(channels, weights)) if is_foldable else ()
    for divisors in candidates:
        smoothed = Int8Input(divisors)
        if (smoothed_error := predicted_error(channels, weights, smoothed)) < error:
            plan, error = smoothed, smoothed_error
    largest_first = np.argsort(-(channels.largest / plan.divisors), kind="stable")
    n_outliers = 1
    while error > GOOD_ERROR and n_outliers <= max_outliers(len(channels.low)):
        split = Int8Input(plan.divisors, tuple(sorted(largest_first[:n_outliers].tolist())))
        if (split_error := predicted_error(channels, weights, split)) < error:
            plan, error = split, split_error
        n_outliers *= 2
    return plan, error


def max_outliers(n_channels: int) -> int:
    """Channels that may be multiplied in float32."""
    return max(1, n_channels // OUTLIER_SHARE)


def _limiting(channels: ChannelStatistics) -> Iterable[Divisors]:
    """Divisors that bring all channels below a limit, for lower and lower limits."""
    largest = channels.largest
    for halvings in range(1, MAX_HALVINGS + 1):
        limit = largest.max() / 2**halvings
        if limit == 0 or (largest > limit).mean() > 0.25:  # so many are not outliers
            return
        exponents = np.ceil(np.log2(np.maximum(largest / limit, 1)))
        yield np.exp2(exponents).astype(np.float32)


def _migrating(channels: ChannelStatistics, weights: LinearWeights) -> Iterable[Divisors]:
    """Divisors that make channels more alike, and their weights less: SmoothQuant's equation 4."""
    inputs, norms = channels.largest, np.sqrt(weights.squares)
    if inputs.max() == 0 or norms.max() == 0:
        return
    inputs = np.maximum(inputs / inputs.max(), LEAST_CHANNEL)
    norms = np.maximum(norms / norms.max(), LEAST_CHANNEL)
    for share in MIGRATIONS:
        divisors = inputs**share / norms ** (1 - share)
        yield (divisors / np.median(divisors)).astype(np.float32)


def quantize_weight(weight: Floats, outliers: Sequence[int] = ()) -> tuple[NDArray[np.int8], Floats]:
    """A linear layer's weight [out, in] as int8 [in, out] and its steps [out]; zero for ``outliers``."""
    rest = weight.copy()
    rest[:, list(outliers)] = 0
    steps = np.divide(np.abs(rest).max(axis=1), 127, dtype=np.float32)
    steps[steps == 0] = 1
    return np.rint(rest / steps[:, np.newaxis]).astype(np.int8).T, steps


def int8_product(
    graph: OnnxGraph,
    x: str,
    layer: Int8Layer,
    plan: Int8Input,
    output: str,
) -> str:
    """Add the nodes of ``x`` times the weight of ``layer``, plus its bias, as ``output``."""
    n_out, n_in = layer.shape
    weight = graph.weight(
        f"{layer.name}.weight",
        (n_in, n_out),
        lambda: quantize_weight(layer.load(), plan.outliers)[0],
        np.int8,
    )
    steps = graph.weight(
        f"{layer.name}.weight.steps", (n_out,), lambda: quantize_weight(layer.load(), plan.outliers)[1]
    )
    parameters = [weight, steps, "", layer.bias] if layer.bias else [weight, steps]  # "": zero points of 0
    if not plan.outliers:
        return graph.node("DynamicQuantizeMatMul", [x, *parameters], output, domain=MICROSOFT)
    rest, thin = _split(graph, x, plan, n_in)
    product = graph.node("DynamicQuantizeMatMul", [rest, *parameters], f"{output}.rest", domain=MICROSOFT)
    thin_weight = graph.weight(
        f"{layer.name}.weight.outliers",
        (len(plan.outliers), n_out),
        lambda: layer.load()[:, list(plan.outliers)].T,
    )
    thin_product = graph.node("MatMul", [thin, thin_weight], f"{output}.outliers")
    return graph.node("Add", [product, thin_product], output)


def _split(graph: OnnxGraph, x: str, plan: Int8Input, n_in: int) -> tuple[str, str]:
    """``x`` with zeros for its outliers, and these alone; built for the first layer that takes ``x``."""
    rest, thin = f"{x}.rest", f"{x}.outliers"
    if not graph.has_node(rest):
        mask = np.ones(n_in, np.float32)
        mask[list(plan.outliers)] = 0
        graph.node("Mul", [x, graph.weight(f"{x}.mask", (n_in,), lambda: mask)], rest)
        graph.node("Gather", [x, graph.constant(f"{x}.channels", plan.outliers)], thin, axis=-1)
    return rest, thin
