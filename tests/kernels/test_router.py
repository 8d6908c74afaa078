"""Routing, gathering and summing of experts against float64 and plain NumPy, at odd sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forgec.ir.expert_ops import Routing
from forgec.plan.stages import ExpertGatherParams, ExpertSumParams, RouterParams
from forgec.reference.experts import route
from tests.kernels.harness import EPS32, EVERY_DEVICE, State, assert_close, common, quantise_q8, run_stage

ROUTINGS = [
    Routing(13, 3),
    Routing(37, 1, "sigmoid", scale=2.5),
    Routing(300, 8, "softmax_chosen"),
    Routing(24, 5, "sigmoid", normalise=True, scale=2.5, groups=6, groups_used=2),
    Routing(8, 2, normalise=True, groups=8, groups_used=3),
    Routing(5, 5, normalise=True),
]


def run_router(
    routing: Routing, logits: np.ndarray, bias: np.ndarray | None, device: str, tile_rows: int = 4
) -> dict[str, np.ndarray]:
    rows, pairs = len(logits), len(logits) * routing.used
    params = RouterParams(*common(device), routing, bias is not None, tile_rows)
    arrays = {
        "logits": logits,
        "chosen": np.full((rows, routing.used), -1, np.int32),
        "weights": np.full((rows, routing.used), np.nan, np.float32),
        "place": np.full(pairs, -1, np.int32),
        "order": np.full(pairs, -1, np.int32),
        "tiles": np.full(1 + 3 * (pairs // tile_rows + routing.experts), -1, np.int32),
        "counters": np.zeros(1, np.uint32),
    }
    if bias is not None:
        arrays["selection_bias"] = bias
    return run_stage(params, arrays, state=State(rows=rows), device=device)


def check_groups(out: dict[str, np.ndarray], tile_rows: int) -> None:
    """Pairs sorted by expert without changing the order of equals, in tiles of one expert."""
    experts = out["chosen"].reshape(-1)
    order = np.argsort(experts, kind="stable")
    assert np.array_equal(out["order"], order)
    assert np.array_equal(out["place"][order], np.arange(order.size))
    expected = []
    for expert in np.unique(experts):
        places = np.flatnonzero(experts[order] == expert)
        for first in range(places[0], places[-1] + 1, tile_rows):
            expected.append((expert, first, min(first + tile_rows, places[-1] + 1)))
    assert out["tiles"][0] == len(expected)
    assert np.array_equal(out["tiles"][1 : 1 + 3 * len(expected)].reshape(-1, 3), expected)
    assert (out["tiles"][1 + 3 * len(expected) :] == -1).all()
    assert out["counters"][0] == 0


@pytest.mark.parametrize(
    ("routing", "device"),
    [
        pytest.param(r, *device.values, marks=device.marks, id=f"{r.experts}-{r.used}-{device.values[0]}")
        for r in ROUTINGS
        for device in EVERY_DEVICE
        # One wave width more for the two that have the most to do: compiling takes the time.
        if device.values[0] != "emulated-gfx942" or r.experts in (24, 300)
    ],
)
def test_choice_weights_and_groups(rng: np.random.Generator, routing: Routing, device: str) -> None:
    rows = int(rng.integers(2, 20))
    logits = (rng.standard_normal((rows, routing.experts)) * rng.uniform(0.5, 3)).astype(np.float32)
    bias = rng.uniform(-0.5, 0.5, routing.experts).astype(np.float32) if routing.gating == "sigmoid" else None
    out = run_router(routing, logits, bias, device)
    chosen, weights = route(routing, logits.astype(np.float64), bias)
    assert np.array_equal(out["chosen"], chosen)
    # An exponential of 2 ulp at arguments up to 20 (rounded before it), over sums of positive numbers.
    assert np.abs(out["weights"] / weights - 1).max() < 64 * EPS32
    check_groups(out, 4)


@pytest.mark.parametrize("device", ["cpu", "emulated-gfx1100"])
def test_equal_scores_and_nan_give_valid_experts(device: str) -> None:
    """The lower number wins among equals; a row of NaN still names experts that exist."""
    routing = Routing(40, 6)
    logits = np.zeros((3, 40), np.float32)
    logits[1, 30:] = 1
    logits[2] = np.nan
    out = run_router(routing, logits, None, device)
    assert out["chosen"][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert out["chosen"][1].tolist() == [30, 31, 32, 33, 34, 35]
    assert ((out["chosen"] >= 0) & (out["chosen"] < 40)).all()
    check_groups(out, 4)


@pytest.mark.parametrize("device", ["cpu", "emulated-gfx1100"])
def test_more_pairs_than_fit_at_once(rng: np.random.Generator, device: str) -> None:
    """Sorting goes through LDS in pieces of 1024 pairs."""
    routing = Routing(19, 4)
    logits = rng.standard_normal((400, 19)).astype(np.float32)
    out = run_router(routing, logits, None, device, tile_rows=32)
    check_groups(out, 32)
    assert np.array_equal(np.sort(out["chosen"]), np.sort(route(routing, logits)[0]))


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("output", ["f32", "q8"])
def test_gather(rng: np.random.Generator, output: str, device: str) -> None:
    rows, used, cols = int(rng.integers(1, 9)), int(rng.integers(1, 4)), 32 * int(rng.integers(1, 6))
    pitch = cols + 4 * int(rng.integers(0, 5))
    params = ExpertGatherParams(*common(device), cols, pitch, used, "sorted", output)
    x = rng.standard_normal((rows, pitch)).astype(np.float32)
    order = rng.permutation(rows * used).astype(np.int32)
    wanted = x[order // used, :cols]
    arrays = {"x": x, "order": order}
    if output == "f32":
        arrays["y"] = np.full_like(wanted, np.nan)
    else:
        arrays["yq"] = np.full(wanted.shape, 99, np.int8)
        arrays["yd"] = np.full((len(wanted), cols // 32), np.nan, np.float32)
        arrays["ys"] = arrays["yd"].copy()
    out = run_stage(params, arrays, state=State(rows=rows), device=device)
    if output == "f32":
        assert np.array_equal(out["y"], wanted)
        return
    q, d, _ = quantise_q8(wanted)
    assert np.abs(out["yq"].astype(int) - q).max() <= 1  # a tie may be rounded either way
    assert_close(out["yd"], d, np.abs(d), 1)


@pytest.mark.parametrize("device", ["cpu"])
def test_gather_of_heads(rng: np.random.Generator, device: str) -> None:
    rows, heads, cols = int(rng.integers(1, 9)), 3, 4 * int(rng.integers(1, 30))
    params = ExpertGatherParams(*common(device), cols, cols + 12, heads, "heads", "f32")
    x = rng.standard_normal((rows, heads, cols + 12)).astype(np.float32)
    arrays = {"x": x, "y": np.full((heads, rows, cols), np.nan, np.float32)}
    out = run_stage(params, arrays, state=State(rows=rows), device=device)
    assert np.array_equal(out["y"], x[..., :cols].transpose(1, 0, 2))


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("shared", ["none", "plain", "gated"])
def test_sum(rng: np.random.Generator, shared: str, device: str) -> None:
    rows, used, cols = int(rng.integers(1, 9)), int(rng.integers(1, 5)), 4 * int(rng.integers(1, 90))
    params = ExpertSumParams(*common(device), cols, used, 0.25, shared, shared != "plain")
    if shared == "plain":
        params = replace(params, scale=1.0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {
        "y": normal(rows * used, cols),
        "weights": normal(rows, used),
        "place": rng.permutation(rows * used).astype(np.int32),
    }
    exact = {name: value.astype(np.float64) for name, value in arrays.items()}
    terms = exact["weights"][..., None] * arrays["y"].astype(float)[arrays["place"].reshape(rows, used)]
    if shared != "none":
        arrays["shared"] = normal(rows, cols)
        more = arrays["shared"].astype(np.float64)
        if shared == "gated":
            arrays["x"], arrays["shared_switch"] = normal(rows, cols), normal(cols)
            dot = arrays["x"].astype(np.float64) @ arrays["shared_switch"]
            more = more / (1 + np.exp(-dot))[:, None]
        terms = np.concatenate([terms, more[:, None]], axis=1)
    expected, magnitude = params.scale * terms.sum(1), np.abs(terms).sum(1)
    arrays["out"] = np.full((rows, cols), np.nan, np.float32)
    if params.residual:
        arrays["residual"] = arrays["out"] = normal(rows, cols)
        expected, magnitude = expected + arrays["out"], magnitude + np.abs(arrays["out"])
    out = run_stage(params, arrays, state=State(rows=rows), device=device)
    assert_close(out["out"], expected, magnitude + cols * EPS32, max(used, 64))
