"""The products of experts against float64: a token's two stages, and the grouped products of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from forgec.ir.expert_ops import Routing
from forgec.plan.stages import ExpertDownParams, ExpertMatmulParams, ExpertUpParams, SharedExpert
from forgec.reference.experts import activate, route
from tests.kernels.harness import (
    EPS32,
    EVERY_DEVICE,
    OWN_CPU,
    State,
    assert_close,
    common,
    packed_weights,
    quantise_q8,
    run_stage,
)

EPS = 1e-5


@dataclass(frozen=True)
class Stack:
    """A stack of random matrices: packed bytes, values float64 [count, rows, cols]."""

    packed: np.ndarray
    values: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, format: str, count: int, rows: int, cols: int, layout: str = "rows"
    ) -> Stack:
        arrays, values = packed_weights(rng, "w", format, count * rows, cols, layout)
        return cls(arrays["w"], values.reshape(count, rows, cols))


#: Devices beside the CPU and gfx1100 that only the first case of a test runs on: compiling takes the time.
FEW = ("emulated-gfx942", "cpu-native")


def everywhere(cases: Mapping[str, object]) -> list[ParameterSet]:
    """(case, device): the common templates, and the CPU's own, which read groups of eight rows."""
    devices = [*EVERY_DEVICE, *(pytest.param(name) for name in OWN_CPU)]
    return [
        pytest.param(case, *device.values, marks=device.marks)
        for number, case in enumerate(cases)
        for device in devices
        if number == 0 or device.values[0] not in FEW
    ]


def layout_of(device: str) -> str:
    return "rows8" if device in OWN_CPU else "rows"


def rows_for(rng: np.random.Generator, device: str, low: int, high: int) -> int:
    """Any number of rows, or whole groups where an expert must begin with one."""
    rows = int(rng.integers(low, high))
    return -(-rows // 8) * 8 if device in OWN_CPU else rows


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def activations(rng: np.random.Generator, act: str, *shape: int) -> np.ndarray:
    """Random activations; for int8 such that are quantised without rounding: 127 is in every group of 32."""
    if act == "f32":
        return normal(rng, *shape)
    x = rng.integers(-126, 127, shape).astype(np.float32)
    x.reshape(-1, 32)[:, 5] = 127
    return x * np.float32(2.0**-6)


UP = {
    "norm-shared": (Routing(7, 3, normalise=True), "silu", ("q4_1", "q8_0"), ("q4_0", "f16", "gated")),
    "bias-clamped": (Routing(6, 2, "softmax_chosen"), "clamped", ("f16", "f16"), None),
    "sigmoid-shared": (
        Routing(9, 2, "sigmoid", scale=1.5),
        "silu",
        ("f32", "bf16"),
        ("q8_0", "q8_0", "plain"),
    ),
}


@pytest.mark.parametrize(("case", "device"), everywhere(UP))
def test_first_products_of_a_token(rng: np.random.Generator, case: str, device: str) -> None:
    routing, activation, formats, shared = UP[case]
    cols, inner = 32 * int(rng.integers(1, 5)), rows_for(rng, device, 5, 40)
    shared_rows, layout = int(rng.integers(3, 30)), layout_of(device)
    bias, norm = activation == "clamped", case == "norm-shared"
    params = ExpertUpParams(
        *common(device),
        routing,
        routing.gating == "sigmoid",
        *formats,
        cols,
        inner,
        bias,
        activation,
        SharedExpert(*shared[:2], "", shared_rows, shared[2] == "gated") if shared else None,
        "rmsnorm" if norm else "none",
        EPS,
        "f32",
        min(int(2 ** rng.integers(0, 5)), common(device)[1]),
        int(rng.integers(1, 4)),
        layout,
    )
    gate, up = (Stack.draw(rng, f, routing.experts, inner, cols, layout) for f in formats)
    x, logits = normal(rng, cols) * np.float32(3), normal(rng, routing.experts)
    arrays = {"x": x, "logits": logits, "gate": gate.packed, "up": up.packed}
    row = x.astype(np.float64)
    if norm:
        arrays["norm_weight"] = rng.uniform(0.5, 1.5, cols).astype(np.float32)
        row = row / np.sqrt(np.mean(row**2) + EPS) * arrays["norm_weight"]
    selection = normal(rng, routing.experts) if params.selection_bias else None
    if selection is not None:
        arrays["selection_bias"] = selection
    (chosen,), (weights,) = route(routing, logits[None].astype(np.float64), selection)
    pairs = [(gate.values[e] @ row, up.values[e] @ row) for e in chosen]
    sizes = [(np.abs(gate.values[e]) @ np.abs(row), np.abs(up.values[e]) @ np.abs(row)) for e in chosen]
    if bias:
        arrays["gate_bias"], arrays["up_bias"] = (normal(rng, routing.experts, inner) * 4 for _ in range(2))
        pairs = [
            (g + arrays["gate_bias"][e], u + arrays["up_bias"][e])
            for (g, u), e in zip(pairs, chosen, strict=True)
        ]
    if shared:
        more = [Stack.draw(rng, f, 1, shared_rows, cols, layout) for f in shared[:2]]
        arrays["shared_gate"], arrays["shared_up"] = (m.packed for m in more)
        pairs.append((more[0].values[0] @ row, more[1].values[0] @ row))
        sizes.append(tuple(np.abs(m.values[0]) @ np.abs(row) for m in more))
    if shared and shared[2] == "gated":
        arrays["shared_switch"] = normal(rng, cols)
    gates, ups = (np.concatenate([p[i] for p in pairs]) for i in range(2))
    gate_size, up_size = (np.concatenate([s[i] for s in sizes]) for i in range(2))
    arrays["chosen"] = np.full(routing.used, -1, np.int32)
    arrays["shares"] = np.full(routing.used + 1, np.nan, np.float32)
    arrays["out"] = np.full(gates.size, np.nan, np.float32)
    out = run_stage(params, arrays, device=device)
    expected = activate(activation, gates, ups)
    # d activation <= 1.2, and it is at most the gate itself; 8 for the biases.
    magnitude = 1.2 * (gate_size + 8) * (np.abs(ups) + 1) + (up_size + 8) * np.abs(gates) + 1
    assert_close(out["out"], expected, magnitude, cols)
    assert np.array_equal(out["chosen"], chosen)
    assert_close(out["shares"][:-1], weights, np.abs(weights), 64)
    open_ = 1 / (1 + np.exp(-(row @ arrays["shared_switch"]))) if params.shared == "gated" else 1.0
    assert_close(out["shares"][-1:], np.array([open_]), np.abs(row).sum(), cols)


#: Format, format of the shared expert, activations, biases, and what lengths are multiples of.
DOWN = {
    "f32-shared": ("q4_1", "f16", "f32", False, 32),
    "q8-shared": ("q8_0", "q4_0", "q8", False, 32),
    "bias": ("bf16", "", "f32", True, 32),
    "super-blocks": ("q4_k", "q6_k", "f32", False, 256),
    "codebooks-q8": ("mxfp4", "iq2_xs", "q8", False, 256),
}


@pytest.mark.parametrize(("case", "device"), everywhere(DOWN))
def test_second_products_of_a_token(rng: np.random.Generator, case: str, device: str) -> None:
    format, shared, act, bias, step = DOWN[case]
    layout = layout_of(device)
    if layout == "rows8" and case == "codebooks-q8":
        format, shared = "q3_k", "iq4_nl"  # those have no groups of eight rows
    experts, used, rows = 6, int(rng.integers(1, 4)), rows_for(rng, device, 5, 60)
    inner, shared_inner = step * int(rng.integers(1, 4)), step * int(rng.integers(1, 4)) if shared else 0
    params = ExpertDownParams(
        *common(device),
        experts,
        used,
        format,
        rows,
        inner,
        bias,
        shared,
        shared_inner,
        0.5,
        case != "q8-shared",
        act,
        min(int(2 ** rng.integers(0, 5)), common(device)[1]),
        int(rng.integers(1, 4)),
        layout,
    )
    down = Stack.draw(rng, format, experts, rows, inner, layout)
    h = activations(rng, act, params.cols)
    chosen = rng.permutation(experts)[:used].astype(np.int32)
    shares = rng.uniform(0.1, 1, used + 1).astype(np.float32)
    arrays = {"h": h, "chosen": chosen, "shares": shares, "down": down.packed}
    parts = [(down.values[e], h[j * inner : (j + 1) * inner]) for j, e in enumerate(chosen)]
    if shared:
        more = Stack.draw(rng, shared, 1, rows, shared_inner, layout)
        arrays["shared_down"] = more.packed
        parts.append((more.values[0], h[used * inner :]))
    expected = sum(s * (w @ x.astype(np.float64)) for s, (w, x) in zip(shares, parts, strict=False))
    magnitude = sum(s * (np.abs(w) @ np.abs(x)) for s, (w, x) in zip(shares, parts, strict=False))
    if bias:
        arrays["down_bias"] = normal(rng, experts, rows)
        expected = expected + shares[:-1].astype(np.float64) @ arrays["down_bias"][chosen]
        magnitude = magnitude + np.abs(arrays["down_bias"][chosen]).sum(0)
    arrays["out"] = np.full(rows, np.nan, np.float32)
    expected, residual = 0.5 * expected, 0.0
    if params.residual:
        arrays["residual"] = arrays["out"] = residual = normal(rng, rows)
    out = run_stage(params, arrays, device=device)
    # Rows of a random format have offsets that cancel: the terms are larger than their sum shows.
    slack = 16 * np.abs(down.values).max() * np.abs(h).max()
    assert_close(out["out"], expected + residual, magnitude + np.abs(residual) + slack, params.cols)


def tiles_of(
    rng: np.random.Generator, pairs: int, stack: int, tile_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A list of tiles as the router writes it, and the matrix of every row."""
    matrix = np.sort(rng.integers(0, stack, pairs))
    entries = []
    for number in np.unique(matrix):
        places = np.flatnonzero(matrix == number)
        for first in range(places[0], places[-1] + 1, tile_rows):
            entries.append((number, first, min(first + tile_rows, places[-1] + 1)))
    return np.array([len(entries), *np.ravel(entries)], np.int32), matrix


MATMUL = {
    "gated-f32": (("q4_1", "f16"), "silu", False, "f32"),
    "clamped-bias": (("q8_0", "q8_0"), "clamped", True, "q8"),
    "plain-q8": (("q4_0",), "", False, "q8"),
    "plain-bias": (("f32",), "", True, "f32"),
    "super-blocks": (("q5_k", "iq3_s"), "silu", False, "q8"),
}


@pytest.mark.parametrize(("case", "device"), everywhere(MATMUL))
def test_grouped_product(rng: np.random.Generator, case: str, device: str) -> None:
    formats, activation, bias, act = MATMUL[case]
    layout = layout_of(device)
    if layout == "rows8" and case == "super-blocks":
        formats = ("q5_k", "q2_k")
    stack, pairs, rows = 5, int(rng.integers(20, 70)), rows_for(rng, device, 3, 90)
    cols, tile_rows = (256 if case == "super-blocks" else 32) * int(rng.integers(1, 4)), 16
    params = ExpertMatmulParams(
        *common(device, 256),
        cols,
        rows,
        stack,
        formats,
        activation,
        bias,
        act,
        "sorted",
        rows,
        tile_rows,
        64,
        layout,
    )
    weights = [Stack.draw(rng, f, stack, rows, cols, layout) for f in formats]
    x = activations(rng, act, pairs, cols)
    tiles, matrix = tiles_of(rng, pairs, stack, tile_rows)
    arrays = {"tiles": tiles, "out": np.full((pairs, rows), np.nan, np.float32)}
    arrays.update(
        zip(("gate", "up") if activation else ("weight",), (w.packed for w in weights), strict=True)
    )
    if act == "q8":
        arrays["xq"], arrays["xd"], arrays["xs"] = quantise_q8(x)
    else:
        arrays["x"] = x
    products = [np.einsum("poi,pi->po", w.values[matrix], x.astype(np.float64)) for w in weights]
    sizes = [np.einsum("poi,pi->po", np.abs(w.values[matrix]), np.abs(x)) for w in weights]
    sizes = [s + 16 * np.abs(w.values).max() * np.abs(x).max() for s, w in zip(sizes, weights, strict=True)]
    for i, name in enumerate(("gate_bias", "up_bias") if activation else ("bias",)):
        if bias:
            arrays[name] = normal(rng, stack, rows) * 4
            products[i] = products[i] + arrays[name][matrix]
    out = run_stage(params, arrays, state=State(rows=1), device=device)
    if not activation:
        assert_close(out["out"], products[0], sizes[0] + 16, cols)
        return
    expected = activate(activation, *products)
    magnitude = 1.2 * (sizes[0] + 8) * (np.abs(products[1]) + 1) + (sizes[1] + 8) * np.abs(products[0]) + 1
    assert_close(out["out"], expected, magnitude, cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_product_of_every_head(rng: np.random.Generator, device: str) -> None:
    """All rows meet all matrices; the output lies row by row, with room behind every head."""
    heads, tokens, rows, cols = (
        3,
        int(rng.integers(1, 40)),
        int(rng.integers(3, 70)),
        32 * int(rng.integers(1, 4)),
    )
    pitch = rows + 8
    params = ExpertMatmulParams(
        *common(device, 256), cols, rows, heads, ("q8_0",), "", False, "f32", "heads", pitch, 16, 64
    )
    weight = Stack.draw(rng, "q8_0", heads, rows, cols)
    x = normal(rng, heads, tokens, cols)
    arrays = {"x": x, "weight": weight.packed, "out": np.full((tokens, heads, pitch), 7, np.float32)}
    out = run_stage(params, arrays, state=State(rows=tokens), device=device)["out"]
    expected = np.einsum("hri,hoi->rho", x.astype(np.float64), weight.values)
    magnitude = np.einsum("hri,hoi->rho", np.abs(x), np.abs(weight.values))
    assert_close(out[..., :rows], expected, magnitude + 16 * EPS32, cols)
    assert (out[..., rows:] == 7).all()


def test_activations_too_long_for_lds(rng: np.random.Generator) -> None:
    """Wide experts leave their activations in memory."""
    params = ExpertDownParams(
        *common("emulated-gfx1100"), 3, 2, "q4_1", 5, 5632, False, "", 0, 1.0, False, "f32", 32, 2
    )
    assert params.activations == "global" and replace(params, inner=64).activations == "lds"
    down = Stack.draw(rng, "q4_1", 3, 5, 5632)
    arrays = {
        "h": normal(rng, params.cols),
        "chosen": np.array([2, 0], np.int32),
        "shares": np.array([0.7, 0.4, 1], np.float32),
        "down": down.packed,
        "out": np.full(5, np.nan, np.float32),
    }
    out = run_stage(params, arrays, device="emulated-gfx1100")["out"]
    weighted = np.stack([down.values[2] * arrays["shares"][0], down.values[0] * arrays["shares"][1]])
    rows = weighted * arrays["h"].astype(np.float64).reshape(2, 1, -1)
    assert_close(out, rows.sum((0, 2)), np.abs(rows).sum((0, 2)), params.cols)
