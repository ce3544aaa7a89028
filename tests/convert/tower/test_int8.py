"""Quantized linear layers: what is chosen for them, and what they compute."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acestep_gguf.convert.onnx_graph import OnnxGraph
from acestep_gguf.convert.tower.int8 import (
    GOOD_ERROR,
    ChannelStatistics,
    Int8Input,
    Int8Layer,
    LinearWeights,
    int8_product,
    plan_input,
    predicted_error,
    quantize_weight,
)

Floats = NDArray[np.float32]

N_IN, N_OUT, N_ROWS = 96, 64, 200


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics(*inputs: Floats) -> ChannelStatistics:
    channels = ChannelStatistics(inputs[0].shape[-1])
    for x in inputs:
        channels.add(x)
    return channels


def computed(x: Floats, weight: Floats, plan: Int8Input, bias: Floats | None = None) -> Floats:
    """What onnxruntime makes of ``x`` [rows, in], which the step before has divided already."""
    graph = OnnxGraph()
    name = graph.weight("bias", (len(weight),), lambda: np.asarray(bias)) if bias is not None else ""
    layer = Int8Layer("layer", weight.shape, lambda: weight * plan.divisors, name)
    output = int8_product(graph, "x", layer, plan, "y")
    model = graph.to_model(
        name="vision",
        inputs={"x": ("B", None, weight.shape[1])},
        outputs={output: ("B", None, None)},
        data_file="in memory",
    )
    weights = graph.read_weights()
    options = ort.SessionOptions()
    options.add_external_initializers(
        list(weights), [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    )
    session = ort.InferenceSession(model.SerializeToString(), options)
    (y,) = session.run(None, {"x": (x / plan.divisors)[np.newaxis]})
    return np.asarray(y[0])


def error(x: Floats, weight: Floats, plan: Int8Input) -> float:
    """RMS error over RMS."""
    exact = x @ weight.T
    return float(np.sqrt(((computed(x, weight, plan) - exact) ** 2).mean() / (exact**2).mean()))


def test_channel_statistics_are_numpys() -> None:
    x, y = normal(0, 50, 7) + 3, normal(1, 1, 20, 7)
    channels = statistics(x, y)
    rows = np.concatenate([x, y[0]])
    np.testing.assert_allclose(channels.largest, np.abs(rows).max(axis=0))
    np.testing.assert_allclose(channels.mean_square, (rows.astype(float) ** 2).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(channels.variance, rows.astype(float).var(axis=0), rtol=1e-5)
    assert (channels.low <= 0).all()
    assert (channels.high >= 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), outliers=st.sets(st.integers(0, N_IN - 1), max_size=5))
def test_weights_are_rounded_to_the_nearest_step(seed: int, outliers: set[int]) -> None:
    weight = normal(seed, N_OUT, N_IN)
    weight[0] = 0
    quantized, steps = quantize_weight(weight, sorted(outliers))
    rest = weight.copy()
    rest[:, sorted(outliers)] = 0
    assert quantized.dtype == np.int8
    assert (np.abs(quantized.T * steps[:, np.newaxis] - rest) <= 0.5001 * steps[:, np.newaxis]).all()
    assert not quantized[sorted(outliers)].any()
    assert (np.abs(quantized.astype(int)).max(axis=0)[1:] == 127).all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    factors=st.lists(st.sampled_from([1.0, 3.0, 50.0]), min_size=N_IN, max_size=N_IN),
    n_outliers=st.integers(0, 5),
    divisor=st.sampled_from([1.0, 2.0, 8.0]),
)
def test_the_error_is_predicted(seed: int, factors: list[float], n_outliers: int, divisor: float) -> None:
    x, weight = normal(seed, N_ROWS, N_IN) * np.array(factors, np.float32), normal(seed + 1, N_OUT, N_IN)
    divisors = np.where(np.array(factors) > 1, divisor, 1).astype(np.float32)
    plan = Int8Input(divisors, tuple(range(n_outliers)))
    predicted = predicted_error(statistics(x), LinearWeights([weight]), plan)
    assert 0.6 < error(x, weight, plan) / predicted < 1.5


@pytest.mark.parametrize("is_foldable", [True, False])
def test_nothing_that_costs_time_is_done_without_outliers(is_foldable: bool) -> None:
    x, weight = normal(0, N_ROWS, N_IN), normal(1, N_OUT, N_IN)
    plan, left = plan_input(statistics(x), LinearWeights([weight]), is_foldable=is_foldable)
    assert plan.outliers == ()
    assert is_foldable or (plan.divisors == 1).all()
    assert left < GOOD_ERROR


@pytest.mark.parametrize("is_foldable", [True, False])
def test_outliers_do_not_ruin_the_rest(is_foldable: bool) -> None:
    """Weights make up for most of what is too large, as in real towers."""
    x, weight = normal(0, N_ROWS, N_IN), normal(1, N_OUT, N_IN)
    planted = (7, 50)
    x[:, planted] *= 50
    weight[:, planted] /= 25
    plan, left = plan_input(statistics(x), LinearWeights([weight]), is_foldable=is_foldable)
    if is_foldable:
        assert sorted(np.argsort(plan.divisors)[-2:].tolist()) == list(planted)
        assert not plan.outliers
    else:
        assert plan.divisors.max() == 1
        assert plan.outliers == planted
    nothing = Int8Input(np.ones(N_IN, np.float32))
    assert error(x, weight, nothing) > 0.1
    assert error(x, weight, plan) < GOOD_ERROR
    assert left < GOOD_ERROR


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 2))
def test_channels_of_all_sizes_are_made_alike(seed: int) -> None:
    """As behind the norm of a trained tower, where no channel stands out."""
    x, weight = normal(seed, N_ROWS, N_IN), normal(seed + 1, N_OUT, N_IN)
    sizes = np.exp(np.random.default_rng(seed).normal(0, 0.7, N_IN)).astype(np.float32)
    x, weight = x * sizes, (weight / np.sqrt(sizes)).astype(np.float32)
    plan, _ = plan_input(statistics(x), LinearWeights([weight]), is_foldable=True)
    rest, _ = plan_input(statistics(x), LinearWeights([weight]), is_foldable=False)
    assert error(x, weight, plan) < 0.85 * error(x, weight, Int8Input(rest.divisors))


def test_a_bias_is_added_once() -> None:
    x, weight, bias = normal(0, N_ROWS, N_IN), normal(1, N_OUT, N_IN), normal(2, N_OUT)
    for outliers in ((), (3, 9)):
        plan = Int8Input(np.ones(N_IN, np.float32), outliers)
        difference = computed(x, weight, plan, bias) - computed(x, weight, plan)
        np.testing.assert_allclose(difference, np.broadcast_to(bias, difference.shape), atol=1e-4)


def test_a_channel_that_never_changes_tells_nothing() -> None:
    """It must not make the error of the others look small."""
    x, weight = normal(0, N_ROWS, N_IN), normal(1, N_OUT, N_IN)
    x[:, 5] = 1000
    nothing = Int8Input(np.ones(N_IN, np.float32))
    assert predicted_error(statistics(x), LinearWeights([weight]), nothing) > 0.5
    plan, left = plan_input(statistics(x), LinearWeights([weight]), is_foldable=False)
    assert plan.outliers == (5,)
    assert left < GOOD_ERROR


def test_zeros_are_no_problem() -> None:
    plan, left = plan_input(
        statistics(np.zeros((4, N_IN), np.float32)),
        LinearWeights([np.zeros((N_OUT, N_IN), np.float32)]),
        is_foldable=True,
    )
    assert left == 0.0
    assert not computed(np.zeros((4, N_IN), np.float32), np.zeros((N_OUT, N_IN), np.float32), plan).any()
