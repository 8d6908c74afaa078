"""RMSNorm, LayerNorm and int8 quantisation of prompt rows."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import NormParams, QuantiseParams
from tests.kernels.harness import (
    EPS32,
    EVERY_DEVICE,
    OWN_CPU,
    State,
    assert_close,
    common,
    quantise_q8,
    run_stage,
)

EPS = 1e-5


def rows_of_x(rng: np.random.Generator) -> np.ndarray:
    """f32 [rows, cols] with one row of zeros and one of large values."""
    rows, cols = int(rng.integers(3, 8)), 32 * int(rng.integers(1, 40))
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    x[1] = 0
    x[2] *= 1e4
    return x


def q8_outputs(x: np.ndarray) -> dict[str, np.ndarray]:
    scales = np.full((len(x), x.shape[1] // 32), np.nan, np.float32)
    return {"yq": np.full(x.shape, 99, np.int8), "yd": scales, "ys": scales.copy()}


@pytest.mark.parametrize("device", [*EVERY_DEVICE, *OWN_CPU])
def test_norm_f32(rng: np.random.Generator, device: str) -> None:
    x = rows_of_x(rng)
    weight = rng.uniform(-2, 2, x.shape[1]).astype(np.float32)
    params = NormParams(*common(device), x.shape[1], EPS, "f32")
    y = np.full((len(x) + 1, x.shape[1]), np.nan, np.float32)
    result = run_stage(params, {"x": x, "weight": weight, "y": y}, state=State(rows=len(x)), device=device)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + EPS) * weight
    assert_close(result["y"][: len(x)], expected, np.abs(expected), 4)
    assert np.isnan(result["y"][len(x) :]).all(), "a row beyond state.rows was written"


def exact_norm(x: np.ndarray, centred: bool) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (True, True)])
def test_layer_norm(rng: np.random.Generator, weight: bool, bias: bool, device: str) -> None:
    x = rows_of_x(rng) + np.float32(rng.uniform(-5, 5))
    parameters = rng.uniform(-2, 2, (2, x.shape[1])).astype(np.float32)
    params = NormParams(*common(device), x.shape[1], EPS, "f32", centred=True, weight=weight, bias=bias)
    arrays = {"x": x, "y": np.full_like(x, np.nan)}
    arrays.update({"weight": parameters[0]} if weight else {})
    arrays.update({"bias": parameters[1]} if bias else {})
    y = run_stage(params, arrays, state=State(rows=len(x)), device=device)["y"]
    normed = exact_norm(x, centred=True)
    expected = normed * (parameters[0] if weight else 1.0) + (parameters[1] if bias else 0.0)
    # What the mean rounds is large where a row's mean is large beside its deviation.
    deviation = np.sqrt(x.astype(np.float64).var(-1, keepdims=True) + EPS)
    magnitude = np.abs(normed) + np.abs(x).max(-1, keepdims=True) / deviation
    assert_close(y, expected, 2 * magnitude + np.abs(expected), x.shape[1])


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
def test_norm_of_heads(rng: np.random.Generator, own_weights: bool, centred: bool, device: str) -> None:
    """Any head length that is a multiple of four; a weight for all heads or for each."""
    rows, heads, length = int(rng.integers(1, 6)), int(rng.integers(1, 6)), 4 * int(rng.integers(1, 20))
    x = rng.standard_normal((rows, heads, length)).astype(np.float32)
    weight = rng.uniform(-2, 2, (heads, length) if own_weights else (length,)).astype(np.float32)
    params = NormParams(
        *common(device), length, EPS, "f32", centred=centred, groups=heads, own_weights=own_weights
    )
    arrays = {"x": x, "weight": weight, "y": np.full_like(x, np.nan)}
    y = run_stage(params, arrays, state=State(rows=rows), device=device)["y"]
    expected = exact_norm(x, centred) * weight
    assert_close(y, expected, np.abs(expected) + 2 * np.abs(weight) * np.abs(x).max(), length)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize("in_place", [False, True])
def test_norm_added_to_a_residual(rng: np.random.Generator, in_place: bool, device: str) -> None:
    x = rows_of_x(rng)
    weight = rng.uniform(-2, 2, x.shape[1]).astype(np.float32)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    y = residual if in_place else np.full_like(x, np.nan)
    params = NormParams(*common(device), x.shape[1], EPS, "f32", residual=True)
    arrays = {"residual": residual, "x": x, "weight": weight, "y": y}
    y = run_stage(params, arrays, state=State(rows=len(x)), device=device)["y"]
    normed = exact_norm(x, centred=False) * weight
    assert_close(y, residual + normed, np.abs(residual) + np.abs(normed), 4)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, *OWN_CPU])
def test_norm_does_not_depend_on_the_scale_of_a_row(rng: np.random.Generator, device: str) -> None:
    """Powers of two leave no rounding: rows that differ by one have the same bits after the norm."""
    cols = 32 * int(rng.integers(1, 40))
    row = rng.standard_normal(cols).astype(np.float32)
    x = np.stack([row, row * 4, row * 0.25])
    params = NormParams(*common(device), cols, 0.0, "f32")
    arrays = {"x": x, "weight": np.ones(cols, np.float32), "y": np.zeros_like(x)}
    y = run_stage(params, arrays, state=State(rows=3), device=device)["y"]
    assert_close((y.astype(np.float64) ** 2).mean(1), np.ones(3), np.ones(3), cols)
    assert np.array_equal(y[0], y[1])
    assert np.array_equal(y[0], y[2])


@pytest.mark.parametrize("device", [*EVERY_DEVICE, *OWN_CPU])
def test_norm_q8(rng: np.random.Generator, device: str) -> None:
    x = rows_of_x(rng)
    weight = rng.uniform(0.5, 2, x.shape[1]).astype(np.float32)
    params = NormParams(*common(device), x.shape[1], EPS, "q8")
    result = run_stage(
        params, {"x": x, "weight": weight, **q8_outputs(x)}, state=State(rows=len(x)), device=device
    )
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + EPS) * weight
    d = np.repeat(result["yd"].astype(np.float64), 32, axis=1)
    # Half a step of quantisation, and the rounding of the norm.
    assert (np.abs(result["yq"] * d - exact) <= d * (0.5 + 1e-4) + 16 * EPS32 * np.abs(exact)).all()
    largest = np.abs(exact).reshape(*result["yd"].shape, 32).max(-1)
    assert_close(result["yd"], largest / 127, largest, 4)
    sums = result["yq"].reshape(*result["yd"].shape, 32).astype(np.float64).sum(-1)
    assert_close(result["ys"], result["yd"] * sums, np.abs(result["yd"] * sums), 1)


@pytest.mark.parametrize("device", OWN_CPU)
def test_quantise_is_exact(rng: np.random.Generator, device: str) -> None:
    x = rows_of_x(rng)
    x[0, :32] = np.arange(-127, -95) / np.float32(2)  # exact ties: half to even
    x[0, 0] = -127.0
    params = QuantiseParams(*common(device), x.shape[1])
    result = run_stage(params, {"x": x, **q8_outputs(x)}, state=State(rows=len(x)), device=device)
    q, d, s = quantise_q8(x)
    assert np.array_equal(result["yq"], q)
    assert np.array_equal(result["yd"], d)
    assert np.array_equal(result["ys"], s)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_quantise_rounds_to_the_nearest(rng: np.random.Generator, device: str) -> None:
    """Where a reciprocal takes the place of a division, what lies close to halfway may go either way."""
    x = rows_of_x(rng)
    x[0, :32] = 0.0
    params = QuantiseParams(*common(device), x.shape[1])
    result = run_stage(params, {"x": x, **q8_outputs(x)}, state=State(rows=len(x)), device=device)
    groups = x.reshape(len(x), -1, 32).astype(np.float64)
    largest = np.abs(groups).max(-1, keepdims=True)
    q = result["yq"].reshape(groups.shape).astype(np.float64)
    exact = np.divide(127 * groups, largest, out=np.zeros_like(groups), where=largest > 0)
    assert np.abs(q - exact).max() <= 0.5 + 127 * 4 * EPS32
    assert_close(result["yd"], largest[..., 0] / 127, largest[..., 0] / 127, 1)
    assert np.array_equal(result["ys"], result["yd"] * q.sum(-1).astype(np.float32))
