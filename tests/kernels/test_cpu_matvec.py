"""The CPU's own matvec against float64, compiled for the portable level and for this very machine.

Same cases as the common template's tests, with eight rows interleaved; on a machine with VNNI the
second compilation takes other instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forgec.plan.stages import MatvecParams, RopeFields, Segment
from tests.kernels import harness, test_matvec
from tests.kernels.harness import OWN_CPU, State, assert_close, run_stage
from tests.kernels.test_matvec import BLOCKED, FORMATS, Case, cols_for, rotate, rotate_bound

KINDS = [(f, "f32") for f in FORMATS] + [(f, act) for f in BLOCKED for act in ("q8", "q16")]


def run_case(rng: np.random.Generator, segments: list[tuple[str, int]], cols: int, **options: Any) -> Case:
    options.setdefault("device", "cpu-own")
    return test_matvec.run_case(rng, segments, cols, layout="rows8", **options)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize(("format", "act"), KINDS, ids="-".join)
def test_every_format_stores_the_product(
    rng: np.random.Generator, format: str, act: str, device: str
) -> None:
    rows = int(rng.integers(1, 70))
    case = run_case(rng, [(format, rows)], cols_for(rng), act=act, device=device)
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)


@pytest.mark.parametrize("act", ["f32", "q8"])
@pytest.mark.parametrize("prologue", ["none", "rmsnorm"])
def test_residual_may_be_the_output(rng: np.random.Generator, act: str, prologue: str) -> None:
    rows = [int(r) for r in rng.integers(1, 40, 2)]
    residual = rng.standard_normal(sum(rows)).astype(np.float32)
    case = run_case(
        rng,
        list(zip(["q4_1", "q8_0"], rows, strict=True)),
        cols_for(rng),
        act=act,
        prologue=prologue,
        epilogue="residual",
        bias=True,
        extra={"residual": residual, "out": residual},
    )
    expected = residual.astype(np.float64) + np.concatenate(case.exact)
    assert_close(case.out["out"], expected, np.concatenate(case.magnitude) + np.abs(residual), case.cols)


@pytest.mark.parametrize("formats", [("q4_0", "q4_0"), ("q8_0", "q4_1")], ids="-".join)
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_swiglu(rng: np.random.Generator, formats: tuple[str, str], act: str) -> None:
    rows = int(rng.integers(1, 90))
    case = run_case(
        rng,
        [(f, rows) for f in formats],
        cols_for(rng),
        act=act,
        prologue="rmsnorm",
        epilogue="gated",
        bias=act == "f32",
    )
    gate, up = case.exact
    expected = gate / (1 + np.exp(-gate)) * up
    magnitude = 1.1 * case.magnitude[0] * np.abs(up) + case.magnitude[1] * np.abs(gate) + np.abs(expected)
    assert_close(case.out["out"], expected, magnitude, case.cols)


@pytest.mark.parametrize("gate", [-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4])
def test_swiglu_of_large_gates(gate: float) -> None:
    """x / (1 + e^-x) stays finite and within rounding where e^-x leaves the range of floats."""
    params = MatvecParams(
        *harness.common("cpu-own"),
        cols=8,
        segments=(Segment("f32", 3), Segment("f32", 3)),
        layout="rows8",
        act="f32",
        epilogue="gated",
        bias=False,
        prologue="none",
        eps=0.0,
        row_select=False,
        lanes_per_row=1,
        rows_per_group=1,
        then="silu",
    )
    weights = {}
    for name, value in (("w0", gate), ("w1", 1.0)):
        w = np.zeros((3, 8), np.float32)
        w[:, 5] = value
        weights[name] = harness.pack(w.view(np.uint8).reshape(-1), "f32", "rows8", 3, 8)
    arrays = {"x": np.ones(8, np.float32), **weights, "out": np.full(3, np.nan, np.float32)}
    out = run_stage(params, arrays, device="cpu-own")["out"]
    expected = gate / (1 + np.exp(min(-gate, 700.0)))
    assert np.abs(out - expected).max() <= 1e-6 * abs(expected) + 1e-30


@pytest.mark.parametrize(
    ("interleaved", "kv_dtype", "formats", "act", "whole"),
    [
        (False, "f16", ("q4_1", "q4_1", "q8_0"), "q8", False),
        (True, "f32", ("q4_0", "f16", "f32"), "f32", False),
        (False, "f32", ("q8_0", "q8_0", "q8_0"), "f32", True),
        (True, "f16", ("q4_1", "q4_1", "q4_1"), "q8", True),
    ],
)
def test_rope_kv(
    rng: np.random.Generator,
    interleaved: bool,
    kv_dtype: str,
    formats: tuple[str, str, str],
    act: str,
    whole: bool,
) -> None:
    """``whole``: heads and rotated parts of whole vectors, which have code of their own."""
    head_length = 24 if whole else 2 * int(rng.integers(3, 17))
    rope = RopeFields(
        heads=6,
        kv_heads=2,
        head_length=head_length,
        rope_dims=16 if whole else head_length - 2 * int(rng.integers(0, 3)),
        interleaved=interleaved,
        context=int(rng.integers(5, 12)),
        kv_dtype=kv_dtype,
    )
    position = int(rng.integers(0, rope.context))
    angles = rng.uniform(0, 2 * np.pi, (rope.context, rope.rope_dims // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    dtype = np.float16 if kv_dtype == "f16" else np.float32
    cache = np.full((rope.kv_heads, rope.context, head_length), 7, dtype)
    extra = {
        "rope_table": table,
        "q_out": np.full(rope.heads * head_length, np.nan, np.float32),
        "k_cache": cache.copy(),
        "v_cache": cache.copy(),
    }
    rows = [heads * head_length for heads in (6, 2, 2)]
    case = run_case(
        rng,
        list(zip(formats, rows, strict=True)),
        cols_for(rng, 1, 12),
        act=act,
        prologue="rmsnorm",
        epilogue="rope_kv",
        bias=True,
        rope=rope,
        extra=extra,
        state=State(position=position),
    )
    rounding = 2.0**-10 / harness.EPS32 / 8 if kv_dtype == "f16" else 1.0
    for i, (name, heads) in enumerate([("q_out", 6), ("k_cache", 2), ("v_cache", 2)]):
        exact, magnitude = (m.reshape(heads, head_length) for m in (case.exact[i], case.magnitude[i]))
        if i < 2:
            exact, magnitude = rotate(exact, table[position], rope), rotate_bound(magnitude, rope)
        if i == 0:
            assert_close(case.out[name].reshape(exact.shape), exact, magnitude, case.cols)
            continue
        got = case.out[name]
        assert_close(got[:, position], exact, magnitude + rounding * np.abs(exact), case.cols)
        others = np.arange(rope.context) != position
        assert (got[:, others] == 7).all(), "another position of the cache changed"


def test_head_reads_the_selected_row(rng: np.random.Generator) -> None:
    case = run_case(
        rng,
        [("q8_0", 61), ("f16", 30)],
        cols_for(rng),
        prologue="rmsnorm",
        row_select=True,
        state=State(row=2),
    )
    assert_close(case.out["out"], np.concatenate(case.exact), np.concatenate(case.magnitude), case.cols)


def test_float_formats_take_any_multiple_of_eight(rng: np.random.Generator) -> None:
    cols = 32 * int(rng.integers(1, 9)) + 8 * int(rng.integers(1, 4))
    case = run_case(rng, [("bf16", 17), ("f32", 3), ("f16", 8)], cols, prologue="rmsnorm")
    assert_close(case.out["out"], np.concatenate(case.exact), np.concatenate(case.magnitude), cols)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("format", BLOCKED)
def test_int8_products_are_exact_integers(rng: np.random.Generator, format: str, device: str) -> None:
    """With scales of one and integers as activations the result is an integer without any rounding.

    Codes and activations at the ends of their ranges would show a sum that saturates in 16 bits.
    """
    rows, cols = 11, 96
    values = {"q4_0": (-8, 7), "q4_1": (0, 15), "q8_0": (-128, 127)}[format]
    w = rng.choice(np.array(values), (rows, cols))
    w[: rows // 2] = values[rng.integers(0, 2)]
    x = rng.choice(np.array([-127, 127], np.float32), cols)
    if rng.integers(0, 2):
        x = np.abs(x)
    one = np.ones((rows, cols // 32, 1), np.float16).view(np.uint8)
    nibbles = (w - (-8 if format == "q4_0" else 0)).astype(np.uint8).reshape(rows, -1, 32)
    packed = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    parts = {
        "q4_0": (one, packed),
        "q4_1": (one, 0 * one, packed),
        "q8_0": (one, w.astype(np.int8).reshape(rows, -1, 32).view(np.uint8)),
    }[format]
    raw = np.ascontiguousarray(np.concatenate(parts, -1)).reshape(-1)
    params = MatvecParams(
        *harness.common(device),
        cols=cols,
        segments=(Segment(format, rows),),
        layout="rows8",
        act="q8",
        epilogue="store",
        bias=False,
        prologue="none",
        eps=0.0,
        row_select=False,
        lanes_per_row=1,
        rows_per_group=1,
    )
    packed = harness.pack(raw, format, "rows8", rows, cols)
    arrays = {"x": x, "w0": packed, "out": np.full(rows, np.nan, np.float32)}
    out = run_stage(params, arrays, device=device)["out"]
    assert np.array_equal(out, (w @ x.astype(np.int64)).astype(np.float32))


def test_rows_go_through_the_common_template(rng: np.random.Generator) -> None:
    case = test_matvec.run_case(rng, [("q4_1", 21)], 160, act="q8", device="cpu-own")
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)
