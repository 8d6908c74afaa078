"""The matvec stage against float64: every format, prologue, epilogue, activation kind and lane count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from forgec.plan.stages import MatvecParams, RopeFields, Segment
from tests.kernels import harness
from tests.kernels.harness import EVERY_DEVICE, State, assert_close, common, packed_weights, run_stage

FORMATS = ["q4_0", "q4_1", "q8_0", "f16", "bf16", "f32"]
BLOCKED = FORMATS[:3]
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A finished run: outputs by argument name, exact products per segment, and sums of |terms|."""

    out: dict[str, np.ndarray]
    exact: list[np.ndarray]
    magnitude: list[np.ndarray]
    arrays: dict[str, np.ndarray]
    cols: int


#: The parameter of every function that has one.
FACTOR = 1.5


def applied(then: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A function of one element in float64, and a bound of its derivative."""
    if then == "gelu":
        y = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
        return y, np.full_like(x, 1.2)
    if then == "squared_relu":
        return np.maximum(x, 0) ** 2, 2 * np.abs(x) + 1e-3
    if then == "softcap":
        return FACTOR * np.tanh(x / FACTOR), np.ones_like(x)
    if then == "clamp":
        return np.clip(x, -FACTOR, FACTOR), np.ones_like(x)
    assert then == "scale"
    return FACTOR * x, np.full_like(x, FACTOR)


def cols_for(rng: np.random.Generator, low: int = 1, high: int = 23) -> int:
    return 32 * int(rng.integers(low, high))


def run_case(
    rng: np.random.Generator,
    segments: list[tuple[str, int]],
    cols: int,
    *,
    device: str = "cpu",
    act: str = "f32",
    epilogue: str = "store",
    prologue: str = "none",
    bias: bool = False,
    row_select: bool = False,
    lanes: int = 8,
    rows_per_group: int = 2,
    rope: RopeFields | None = None,
    extra: dict[str, np.ndarray] | None = None,
    state: State | None = None,
    block: int | None = None,
    layout: str = "rows",
    then: str = "",
) -> Case:
    """Run the stage on fresh random numbers; the CPU's own template reads the layout "rows8"."""
    family, wave, threads = common(device, block)
    if act == "q16" and wave < 8 and layout == "rows":
        pytest.skip("eight lanes share a group of 16-bit activations; the CPU's own text has its own")
    params = MatvecParams(
        family,
        wave,
        threads,
        cols=cols,
        segments=tuple(Segment(*s) for s in segments),
        layout=layout,
        act=act,
        epilogue=epilogue,
        bias=bias,
        prologue=prologue,
        eps=EPS,
        row_select=row_select,
        lanes_per_row=min(lanes, wave),
        rows_per_group=rows_per_group,
        rope=rope,
        then=then or ("silu" if epilogue == "gated" else ""),
        post_eps=EPS if epilogue == "norm_residual" else 0.0,
        factor=FACTOR,
    )
    state = state or State(row=int(rng.integers(0, 3)))
    x = rng.standard_normal((3, cols)).astype(np.float32) * np.float32(rng.uniform(0.2, 3.0))
    x[:, : cols // 5] = 0  # a group of zeros has no scale
    arrays = {"x": x, **(extra or {})}
    if prologue != "none":
        arrays["norm_weight"] = rng.uniform(0.5, 1.5, cols).astype(np.float32)
    values = []
    for i, (format, rows) in enumerate(segments):
        planes, w = packed_weights(rng, f"w{i}", format, rows, cols, layout)
        arrays.update(planes)
        values.append(w)
        if bias:
            arrays[f"bias{i}"] = rng.standard_normal(rows).astype(np.float32)
    if rope is None:
        total = segments[0][1] if epilogue == "gated" else sum(rows for _, rows in segments)
        arrays.setdefault("out", np.full(total, np.nan, np.float32))
    out = run_stage(params, arrays, state=state, device=device)
    row = x[state.row if row_select else 0].astype(np.float64)
    exact, magnitude = products(row, arrays, values, act, prologue, bias)
    return Case(out, exact, magnitude, arrays, cols)


def products(
    row: np.ndarray,
    arrays: dict[str, np.ndarray],
    values: list[np.ndarray],
    act: str,
    prologue: str,
    bias: bool,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """W · a in float64 per segment. int8 activations are quantised as the kernel does; where an element
    lies so close to a rounding boundary that the f32 norm may tip it, one step of its scale is allowed for.
    """
    if prologue == "layernorm":
        row = row - np.mean(row)
    if prologue != "none":
        row = row / np.sqrt(np.mean(row**2) + EPS) * arrays["norm_weight"]
    slack = np.abs(row) * 8 * harness.EPS32
    if act != "f32":
        q, d, _ = harness.quantise_to(row[None].astype(np.float32), {"q8": 127, "q16": 32512}[act])
        step = np.repeat(d[0].astype(np.float64), 32)
        quantised = q[0] * step
        scaled = np.divide(row, step, out=np.zeros_like(row), where=step > 0)
        near_tie = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 1e-4
        slack = np.where(near_tie, step, np.abs(quantised) * 8 * harness.EPS32)
        row = quantised
    exact, magnitude = [], []
    for i, w in enumerate(values):
        offset = arrays[f"bias{i}"].astype(np.float64) if bias else 0.0
        exact.append(w @ row + offset)
        # The slack is an absolute error; assert_close multiplies by at least 8 eps.
        terms = np.abs(w) @ np.abs(row) + np.abs(offset) + 16 * np.abs(w).max() * np.abs(row).sum() / len(row)
        magnitude.append(terms + np.abs(w) @ slack / (8 * harness.EPS32))
    return exact, magnitude


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize(
    ("format", "act"),
    [(f, "f32") for f in FORMATS] + [(f, act) for f in BLOCKED for act in ("q8", "q16")],
    ids="-".join,
)
def test_every_format_stores_the_product(
    rng: np.random.Generator, format: str, act: str, device: str
) -> None:
    lanes = int(2 ** rng.integers(0, 6))
    rows = int(rng.integers(1, 70))
    case = run_case(rng, [(format, rows)], cols_for(rng), act=act, lanes=lanes, device=device)
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8", "q16"])
@pytest.mark.parametrize("prologue", ["none", "rmsnorm", "layernorm"])
def test_residual_may_be_the_output(rng: np.random.Generator, act: str, prologue: str, device: str) -> None:
    rows = int(rng.integers(1, 90))
    residual = rng.standard_normal(rows).astype(np.float32)
    case = run_case(
        rng,
        [("q4_1", rows)],
        cols_for(rng),
        act=act,
        prologue=prologue,
        epilogue="residual",
        bias=True,
        extra={"residual": residual, "out": residual},
        device=device,
    )
    expected = residual.astype(np.float64) + case.exact[0]
    assert_close(case.out["out"], expected, case.magnitude[0] + np.abs(residual), case.cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("formats", [("q4_0", "q4_0"), ("q8_0", "q4_1")], ids="-".join)
@pytest.mark.parametrize("act", ["f32", "q8", "q16"])
def test_swiglu(rng: np.random.Generator, formats: tuple[str, str], act: str, device: str) -> None:
    rows = int(rng.integers(1, 90))
    case = run_case(
        rng,
        [(f, rows) for f in formats],
        cols_for(rng),
        act=act,
        prologue="rmsnorm",
        epilogue="gated",
        bias=act == "f32",
        rows_per_group=3,
        device=device,
    )
    gate, up = case.exact
    expected = gate / (1 + np.exp(-gate)) * up
    # d silu <= 1.1: the errors of both factors, each weighted with the other.
    magnitude = 1.1 * case.magnitude[0] * np.abs(up) + case.magnitude[1] * np.abs(gate) + np.abs(expected)
    assert_close(case.out["out"], expected, magnitude, case.cols)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_last_block_norms_and_adds(rng: np.random.Generator, in_place: bool, device: str) -> None:
    """The counter is zero again afterwards: the same launch is right twice."""
    rows = 8 * int(rng.integers(1, 12))
    residual, weight = (
        rng.standard_normal(rows).astype(np.float32),
        rng.uniform(0.5, 2, rows).astype(np.float32),
    )
    case = run_case(
        rng,
        [("q8_0", rows)],
        cols_for(rng),
        epilogue="norm_residual",
        bias=True,
        extra={
            "residual": residual,
            "post_norm": weight,
            "raw": np.full(rows, np.nan, np.float32),
            "counter": np.zeros(1, np.uint32),
            "out": residual if in_place else np.full(rows, np.nan, np.float32),
        },
        device=device,
        layout="rows8" if device == "cpu-own" else "rows",
    )
    exact, terms = case.exact[0], case.magnitude[0]
    factor = 1 / np.sqrt(np.mean(exact**2) + EPS)
    # The error of the factor is the mean of all rows' errors, at most.
    slack = factor * weight * (terms + np.abs(exact) * factor * terms.max())
    assert_close(case.out["out"], residual + exact * factor * weight, slack + np.abs(residual), case.cols)
    assert case.out["counter"][0] == 0


@pytest.mark.parametrize("device", [*EVERY_DEVICE, "cpu-own"])
@pytest.mark.parametrize("then", ["gelu", "squared_relu", "softcap", "scale"])
def test_a_function_of_the_product(rng: np.random.Generator, then: str, device: str) -> None:
    """Stored after a norm with all parameters, or added to a residual."""
    rows = int(rng.integers(1, 90))
    stored = then in ("gelu", "softcap")
    residual = rng.standard_normal(rows).astype(np.float32)
    case = run_case(
        rng,
        [("q4_1", rows)],
        cols_for(rng),
        prologue="layernorm" if stored else "none",
        epilogue="store" if stored else "residual",
        bias=True,
        extra={} if stored else {"residual": residual, "out": np.full(rows, np.nan, np.float32)},
        device=device,
        layout="rows8" if device == "cpu-own" else "rows",
        then=then,
    )
    expected, slope = applied(then, case.exact[0])
    before = 0.0 if stored else residual
    magnitude = slope * case.magnitude[0] + np.abs(expected) + np.abs(before) + FACTOR
    assert_close(case.out["out"], expected + before, magnitude, case.cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize(
    ("interleaved", "kv_dtype", "rows_per_group", "formats"),
    [
        (False, "f16", 2, ("q4_1", "q4_1", "q8_0")),
        (True, "f32", 4, ("q4_0", "f16", "f32")),
        (False, "f32", 1, ("q8_0", "q8_0", "q8_0")),
    ],
)
def test_rope_kv(
    rng: np.random.Generator,
    interleaved: bool,
    kv_dtype: str,
    rows_per_group: int,
    formats: tuple[str, str, str],
    device: str,
) -> None:
    head_length = 2 * int(rng.integers(3, 17))
    rope = RopeFields(
        heads=6,
        kv_heads=2,
        head_length=head_length,
        rope_dims=head_length - 2 * int(rng.integers(0, 3)),
        interleaved=interleaved,
        context=int(rng.integers(5, 12)),
        kv_dtype=kv_dtype,
    )
    position = int(rng.integers(0, rope.context))
    dtype = np.float16 if kv_dtype == "f16" else np.float32
    angles = rng.uniform(0, 2 * np.pi, (rope.context, rope.rope_dims // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    cache = np.full((rope.kv_heads, rope.context, head_length), 7, dtype)
    extra = {
        "rope_table": table,
        "q_out": np.full(rope.heads * head_length, np.nan, np.float32),
        "k_cache": cache.copy(),
        "v_cache": cache.copy(),
    }
    rows = [rope.heads * head_length, rope.kv_heads * head_length, rope.kv_heads * head_length]
    case = run_case(
        rng,
        list(zip(formats, rows, strict=True)),
        cols_for(rng, 1, 12),
        prologue="rmsnorm",
        epilogue="rope_kv",
        bias=True,
        rows_per_group=rows_per_group,
        rope=rope,
        extra=extra,
        state=State(position=position),
        device=device,
    )
    scale = 2.0**-10 / harness.EPS32 / 8 if kv_dtype == "f16" else 1.0
    for i, (name, heads) in enumerate([("q_out", 6), ("k_cache", 2), ("v_cache", 2)]):
        exact, magnitude = (m.reshape(heads, head_length) for m in (case.exact[i], case.magnitude[i]))
        if i < 2:
            exact, magnitude = rotate(exact, table[position], rope), rotate_bound(magnitude, rope)
        if i == 0:
            assert_close(case.out[name].reshape(exact.shape), exact, magnitude, case.cols)
            continue
        got = case.out[name]
        assert_close(got[:, position], exact, magnitude + scale * np.abs(exact), case.cols)
        others = np.arange(rope.context) != position
        assert (got[:, others] == 7).all(), "another position of the cache changed"


def rotate(v: np.ndarray, table: np.ndarray, rope: RopeFields) -> np.ndarray:
    """RoPE of [heads, head_length] by table [rope_dims / 2, 2], float64."""
    low, high = pair_indices(rope)
    cos, sin = table[:, 0].astype(np.float64), table[:, 1].astype(np.float64)
    out = v.copy()
    out[:, low] = cos * v[:, low] - sin * v[:, high]
    out[:, high] = sin * v[:, low] + cos * v[:, high]
    return out


def rotate_bound(magnitude: np.ndarray, rope: RopeFields) -> np.ndarray:
    low, high = pair_indices(rope)
    out = magnitude.copy()
    out[:, low] = out[:, high] = magnitude[:, low] + magnitude[:, high]
    return out


def pair_indices(rope: RopeFields) -> tuple[np.ndarray, np.ndarray]:
    i = np.arange(rope.rope_dims // 2)
    return (2 * i, 2 * i + 1) if rope.interleaved else (i, i + rope.rope_dims // 2)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_head_reads_the_selected_row(rng: np.random.Generator, device: str) -> None:
    case = run_case(
        rng,
        [("q8_0", 61), ("f16", 30)],
        cols_for(rng),
        prologue="rmsnorm",
        row_select=True,
        state=State(row=2),
        device=device,
    )
    exact, magnitude = np.concatenate(case.exact), np.concatenate(case.magnitude)
    assert_close(case.out["out"], exact, magnitude, case.cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("prologue", ["none", "rmsnorm"])
def test_row_too_long_for_lds(rng: np.random.Generator, prologue: str, device: str) -> None:
    cols = 32 * int(rng.integers(342, 380))
    case = run_case(rng, [("q4_1", 5)], cols, prologue=prologue, lanes=32, device=device)
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)


def test_float_formats_take_any_multiple_of_eight(rng: np.random.Generator) -> None:
    cols = 32 * int(rng.integers(1, 9)) + 8
    case = run_case(rng, [("bf16", 17), ("f32", 3)], cols, prologue="rmsnorm")
    assert_close(case.out["out"], np.concatenate(case.exact), np.concatenate(case.magnitude), cols)


@pytest.mark.parametrize("device", ["emulated-gfx1100", "emulated-gfx942"])
def test_int8_rows_on_the_emulator(rng: np.random.Generator, device: str) -> None:
    """The smallest case that has everything: prologue, quantisation, a tail of slices and one of rows."""
    residual = rng.standard_normal(5).astype(np.float32)
    case = run_case(
        rng,
        [("q4_1", 5)],
        160,
        act="q8",
        prologue="rmsnorm",
        epilogue="residual",
        lanes=4,
        extra={"residual": residual, "out": residual},
        device=device,
        block=64,
    )
    expected = residual.astype(np.float64) + case.exact[0]
    assert_close(case.out["out"], expected, case.magnitude[0] + np.abs(residual), case.cols)
