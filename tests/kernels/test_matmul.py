"""The matmul stage against float64: every format, epilogue and activation kind, with ragged edges."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import MatmulParams, Segment
from tests.kernels.harness import (
    EVERY_DEVICE,
    State,
    assert_close,
    common,
    packed_weights,
    quantise_q8,
    run_stage,
)
from tests.kernels.test_matvec import FACTOR, applied

FORMATS = ["q4_0", "q4_1", "q8_0", "f16", "bf16", "f32"]
KINDS = [(f, "f32") for f in FORMATS] + [(f, "q8") for f in FORMATS[:3]]


def run_case(
    rng: np.random.Generator,
    segments: list[tuple[str, int]],
    *,
    device: str,
    act: str,
    epilogue: str = "store",
    bias: bool = False,
    in_place: bool = False,
    cols: int | None = None,
    layout: str = "rows",
    tile_rows: int = 8,
    then: str = "",
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], int]:
    """(out, exact products, sums of |terms|, columns) for a random number of rows.

    The CPU's own template reads the layout "rows8".
    """
    family, wave, block = common(device, 256)
    cols = cols or 32 * int(rng.integers(1, 9))
    rows = int(rng.integers(1, 75))
    tile_rows, tile_cols = (64, 64) if wave > 1 else (tile_rows, 12)
    params = MatmulParams(
        family,
        wave,
        block,
        cols,
        tuple(Segment(*s) for s in segments),
        layout,
        act,
        epilogue,
        bias,
        tile_rows,
        tile_cols,
        then=then or ("silu" if epilogue == "gated" else ""),
        factor=FACTOR,
    )
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    x[rows // 2, : cols // 3] = 0
    arrays: dict[str, np.ndarray] = {"x": x}
    if act == "q8":
        q, d, s = quantise_q8(x)
        arrays = {"xq": q, "xd": d, "xs": s}
        x = q * np.repeat(d.astype(np.float64), 32, axis=1)
    exact, magnitude = [], []
    for i, (format, features) in enumerate(segments):
        planes, w = packed_weights(rng, f"w{i}", format, features, cols, layout)
        arrays.update(planes)
        offset = rng.standard_normal(features).astype(np.float32) if bias else np.zeros(features, np.float32)
        if bias:
            arrays[f"bias{i}"] = offset
        exact.append(x.astype(np.float64) @ w.T + offset)
        # q4 formats sum codes of 0..15 and correct by the offset: the terms are larger than the weights.
        terms = np.abs(x) @ np.abs(w).T + 16 * np.abs(w).max() * np.abs(x).mean(1, keepdims=True)
        magnitude.append(terms + np.abs(offset))
    width = segments[0][1] if epilogue == "gated" else sum(f for _, f in segments)
    if epilogue == "residual":
        arrays["residual"] = rng.standard_normal((rows, width)).astype(np.float32)
        exact = [np.concatenate(exact, 1) + arrays["residual"]]
        magnitude = [np.concatenate(magnitude, 1) + np.abs(arrays["residual"])]
    arrays["out"] = arrays["residual"] if in_place else np.full((rows, width), np.nan, np.float32)
    out = run_stage(params, arrays, state=State(rows=rows), device=device)["out"]
    return out, exact, magnitude, cols


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize(("format", "act"), KINDS, ids="-".join)
def test_every_format_stores_the_product(
    rng: np.random.Generator, format: str, act: str, device: str
) -> None:
    features = int(rng.integers(1, 140))
    out, exact, magnitude, cols = run_case(rng, [(format, features)], device=device, act=act)
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_segments_of_different_formats_with_bias(rng: np.random.Generator, act: str, device: str) -> None:
    segments = [("q4_0", 71), ("q8_0", 18), ("q4_1", 65)]
    out, exact, magnitude, cols = run_case(rng, segments, device=device, act=act, bias=True)
    assert_close(out, np.concatenate(exact, 1), np.concatenate(magnitude, 1), cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_residual(rng: np.random.Generator, act: str, in_place: bool, device: str) -> None:
    features = int(rng.integers(1, 100))
    out, exact, magnitude, cols = run_case(
        rng,
        [("q4_1", features)],
        device=device,
        act=act,
        epilogue="residual",
        bias=not in_place,
        in_place=in_place,
    )
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("formats", [("q4_1", "q4_1"), ("q8_0", "q4_0")], ids="-".join)
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_swiglu(rng: np.random.Generator, formats: tuple[str, str], act: str, device: str) -> None:
    features = int(rng.integers(1, 100))
    out, (gate, up), (gate_terms, up_terms), cols = run_case(
        rng, [(f, features) for f in formats], device=device, act=act, epilogue="gated", bias=act == "q8"
    )
    expected = gate / (1 + np.exp(-gate)) * up
    magnitude = 1.1 * gate_terms * np.abs(up) + up_terms * np.abs(gate) + np.abs(expected)
    assert_close(out, expected, magnitude, cols)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize("then", ["gelu", "squared_relu", "clamp"])
def test_a_function_of_the_product(rng: np.random.Generator, then: str, device: str) -> None:
    features = int(rng.integers(1, 100))
    layout = "rows8" if device == "cpu-own" else "rows"
    out, (exact,), (terms,), cols = run_case(
        rng, [("q4_1", features)], device=device, act="f32", bias=True, then=then, layout=layout
    )
    expected, slope = applied(then, exact)
    assert_close(out, expected, slope * terms + np.abs(expected), cols)


def test_columns_that_end_within_a_tile(rng: np.random.Generator) -> None:
    out, exact, magnitude, cols = run_case(rng, [("f16", 33), ("f32", 9)], device="cpu", act="f32", cols=104)
    assert_close(out, np.concatenate(exact, 1), np.concatenate(magnitude, 1), cols)
