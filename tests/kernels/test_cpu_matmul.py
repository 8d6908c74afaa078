"""The CPU's own matmul and embedding against float64, for the portable level and for this very machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forgec.plan.stages import EmbeddingParams, MatmulParams, Segment
from tests.kernels import harness, test_matmul
from tests.kernels.harness import OWN_CPU, State, assert_close, packed_weights, quantise_q8, run_stage
from tests.kernels.test_matmul import FORMATS, KINDS

Result = tuple[np.ndarray, list[np.ndarray], list[np.ndarray], int]


def run_case(rng: np.random.Generator, segments: list[tuple[str, int]], **options: Any) -> Result:
    """As for the common template, with tiles that are a few rows of activations or one chunk."""
    tile_rows = int(rng.integers(3, 80))
    options.setdefault("device", "cpu-own")
    return test_matmul.run_case(rng, segments, layout="rows8", tile_rows=tile_rows, **options)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize(("format", "act"), KINDS, ids="-".join)
def test_every_format_stores_the_product(
    rng: np.random.Generator, format: str, act: str, device: str
) -> None:
    features = int(rng.integers(1, 140))
    out, exact, magnitude, cols = run_case(rng, [(format, features)], device=device, act=act)
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_segments_of_different_formats_with_bias(rng: np.random.Generator, act: str, device: str) -> None:
    segments = [("q4_0", 71), ("q8_0", 18), ("q4_1", 65)]
    out, exact, magnitude, cols = run_case(rng, segments, device=device, act=act, bias=True)
    assert_close(out, np.concatenate(exact, 1), np.concatenate(magnitude, 1), cols)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_residual(rng: np.random.Generator, act: str, in_place: bool) -> None:
    features = int(rng.integers(1, 100))
    out, exact, magnitude, cols = run_case(
        rng,
        [("q4_1", features)],
        act=act,
        epilogue="residual",
        bias=not in_place,
        in_place=in_place,
    )
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("formats", [("q4_1", "q4_1"), ("q8_0", "q4_0")], ids="-".join)
@pytest.mark.parametrize("act", ["f32", "q8"])
def test_swiglu(rng: np.random.Generator, formats: tuple[str, str], act: str, device: str) -> None:
    features = int(rng.integers(1, 100))
    out, (gate, up), (gate_terms, up_terms), cols = run_case(
        rng, [(f, features) for f in formats], act=act, epilogue="gated", bias=act == "q8", device=device
    )
    expected = gate / (1 + np.exp(-gate)) * up
    magnitude = 1.1 * gate_terms * np.abs(up) + up_terms * np.abs(gate) + np.abs(expected)
    assert_close(out, expected, magnitude, cols)


@pytest.mark.parametrize("device", OWN_CPU)
def test_columns_that_end_within_what_is_decoded_at_once(rng: np.random.Generator, device: str) -> None:
    cols = 128 * int(rng.integers(1, 6)) + 8 * int(rng.integers(1, 16))
    segments = [("f16", 33), ("f32", 9), ("bf16", 8)]
    out, exact, magnitude, cols = run_case(rng, segments, act="f32", cols=cols, device=device)
    assert_close(out, np.concatenate(exact, 1), np.concatenate(magnitude, 1), cols)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q8_0"])
def test_int8_products_are_exact_integers(rng: np.random.Generator, format: str, device: str) -> None:
    """Codes and activations at the ends of their ranges, scales of one: integers without any rounding."""
    rows, features, cols = 5, 19, 64
    low, high = {"q4_0": (-8, 7), "q4_1": (0, 15), "q8_0": (-128, 127)}[format]
    w = rng.choice(np.array([low, high]), (features, cols))
    w[: features // 2] = (low, high)[rng.integers(0, 2)]
    x = rng.choice(np.array([-127, 127], np.int8), (rows, cols))
    x[0] = 127
    one = np.ones((features, cols // 32, 1), np.float16).view(np.uint8)
    nibbles = (w - (-8 if format == "q4_0" else 0)).astype(np.uint8).reshape(features, -1, 32)
    packed = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    parts = {
        "q4_0": (one, packed),
        "q4_1": (one, 0 * one, packed),
        "q8_0": (one, w.astype(np.int8).reshape(features, -1, 32).view(np.uint8)),
    }[format]
    raw = np.ascontiguousarray(np.concatenate(parts, -1)).reshape(-1)
    segments = (Segment(format, features),)
    params = MatmulParams(*harness.common(device), cols, segments, "rows8", "q8", "store", False, 4, 8)
    groups = np.ones((rows, cols // 32), np.float32)
    sums = x.reshape(rows, -1, 32).sum(-1, dtype=np.int32).astype(np.float32)
    weights = {"w0": harness.pack(raw, format, "rows8", features, cols)}
    arrays = {"xq": x, "xd": groups, "xs": sums, **weights, "out": np.zeros((rows, features), np.float32)}
    out = run_stage(params, arrays, state=State(rows=rows), device=device)["out"]
    assert np.array_equal(out, (x.astype(np.int64) @ w.T).astype(np.float32))


@pytest.mark.parametrize("act", ["f32", "q8"])
def test_a_row_does_not_depend_on_the_rows_beside_it(rng: np.random.Generator, act: str) -> None:
    """A prompt in one chunk or in pieces gives the same bits."""
    cols, features, rows = 96, 37, int(rng.integers(65, 90))
    planes, _ = packed_weights(rng, "w0", "q4_1", features, cols, "rows8")
    segments = (Segment("q4_1", features),)
    params = MatmulParams(*harness.common("cpu-own"), cols, segments, "rows8", act, "store", False, 80, 8)
    x = rng.standard_normal((rows, cols)).astype(np.float32)

    def product(part: slice, blocks: int = 2) -> np.ndarray:
        inputs = {"x": x[part].copy()}
        if act == "q8":
            inputs = dict(zip(("xq", "xd", "xs"), quantise_q8(x[part]), strict=True))
        count = len(x[part])
        arrays = {**inputs, **planes, "out": np.zeros((count, features), np.float32)}
        return run_stage(params, arrays, state=State(rows=count), blocks=(blocks,), device="cpu-own")["out"]

    cut = int(rng.integers(1, rows))
    whole = product(slice(0, rows))
    assert np.array_equal(whole.view(np.uint32), product(slice(0, rows), 40).view(np.uint32)), "many threads"
    pieces = np.concatenate([product(slice(0, cut)), product(slice(cut, rows))])
    assert np.array_equal(whole.view(np.uint32), pieces.view(np.uint32))


EMBEDDINGS = [(f, "rows8", False) for f in FORMATS] + [("q8_0", "rows8", True), ("q4_1", "rows", False)]


@pytest.mark.parametrize(("format", "layout", "decode"), EMBEDDINGS)
def test_embedding(rng: np.random.Generator, format: str, layout: str, decode: bool) -> None:
    vocab, cols, scale = int(rng.integers(5, 40)), 32 * int(rng.integers(1, 12)), 22.5
    planes, values = packed_weights(rng, "w0", format, vocab, cols, layout)
    params = EmbeddingParams(*harness.common("cpu-own"), format, layout, cols, vocab, decode, scale)
    ids = np.append(rng.integers(0, vocab, 6), [-3, vocab + 5]).astype(np.int32)
    arrays = {"tokens": ids, **planes, "out": np.full((len(ids), cols), np.nan, np.float32)}
    state = State(rows=len(ids), token=int(ids[-1]))
    out = run_stage(params, arrays, state=state, device="cpu-own")["out"]
    expected = values[np.clip(ids, 0, vocab - 1)] * scale
    if decode:
        assert np.isnan(out[1:]).all(), "a decode step wrote more than one row"
        out, expected = out[:1], expected[-1:]
    assert_close(out, expected, np.abs(expected) + 22.5 * np.abs(values).max(), 2)
