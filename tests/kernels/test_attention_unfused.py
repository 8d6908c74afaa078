"""QK^T, softmax and weighted V as separate stages against float64, and their chain against attention."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import (
    MaskParams,
    QKParams,
    ScaleParams,
    SoftmaxParams,
    StageParams,
    WeightedVParams,
)
from tests.kernels.attention_cases import Case, exact_attention, exact_scores, exact_softmax, make_case
from tests.kernels.harness import EVERY_DEVICE, State, assert_close, common, run_stage

on_devices = pytest.mark.parametrize("device", EVERY_DEVICE)


def run_qk(case: Case, device: str, block: int | None = None) -> np.ndarray:
    """Scores [heads, rows, context], NaN where the stage must not write."""
    arrays = {
        "q": case.q,
        "k_cache": case.k_cache,
        "scores": np.full((case.heads, case.rows, case.context), np.nan, np.float32),
    }
    params = QKParams(*common(device, block), case.heads, case.cache)
    return run_stage(params, arrays, state=case.state, device=device)["scores"]


def run_softmax(scores: np.ndarray, device: str, keys: int | None = None) -> np.ndarray:
    """Softmax of [heads, rows, context], the last row seeing ``keys`` keys (all by default)."""
    heads, rows, context = scores.shape
    keys = keys or context
    params = SoftmaxParams(*common(device), heads, context)
    arrays = {"scores": scores, "y": np.full_like(scores, np.nan)}
    return run_stage(params, arrays, state=State(rows=rows, position=keys - rows), device=device)["y"]


def check_softmax(scores: np.ndarray, device: str) -> None:
    y = run_softmax(scores.astype(np.float32), device)
    exact = scores.astype(np.float32).astype(np.float64)
    expected = exact_softmax(exact)
    # An exponent's rounding error is relative to its size and moves the weight by as much, relatively.
    distance = np.minimum(exact.max(-1, keepdims=True) - exact, 200.0)
    assert_close(y, expected, expected * (1.0 + distance), scores.shape[-1])


def run_weighted_v(case: Case, p: np.ndarray, device: str) -> np.ndarray:
    params = WeightedVParams(*common(device), case.heads, case.cache)
    out = np.full((case.rows, case.heads, case.cache.value_length), np.nan, np.float32)
    arrays = {"p": p, "v_cache": case.k_cache if case.cache.v_from_k else case.v_cache, "out": out}
    return run_stage(params, arrays, state=case.state, device=device)["out"]


def check_weighted_v(case: Case, p: np.ndarray, device: str) -> None:
    """``p`` [heads, rows, keys] in f32."""
    padded = np.full((case.heads, case.rows, case.context), np.nan, np.float32)
    padded[:, :, : case.keys] = p
    exact, values = p.astype(np.float64), case.repeated(case.v)
    expected = np.einsum("hrc,hcd->rhd", exact, values)
    magnitude = np.einsum("hrc,hcd->rhd", np.abs(exact), np.abs(values))
    assert_close(run_weighted_v(case, padded, device), expected, magnitude, case.keys)


class TestQK:
    @on_devices
    @pytest.mark.parametrize("head_length", [32, 64, 80, 100, 256])
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int) -> None:
        case = make_case(rng, head_length=head_length, rows=3, position=9)
        expected, magnitude = exact_scores(case)
        assert_close(run_qk(case, device)[:, :, : case.keys], expected, magnitude, head_length)

    @on_devices
    def test_one_query(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, position=int(rng.integers(60, 150)))
        expected, magnitude = exact_scores(case)
        assert_close(run_qk(case, device)[:, :, : case.keys], expected, magnitude, 64)

    @on_devices
    def test_each_head_reads_the_keys_of_its_group(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=8, kv_heads=4, head_length=32, rows=2, position=3, kv_dtype="f32")
        case.q[:] = 1.0
        case.k_cache[:, :5] = np.arange(4, dtype=np.float32)[:, None, None]
        scores = run_qk(case, device)[:, :, :5]
        np.testing.assert_array_equal(
            scores, np.repeat(np.arange(4.0) * 32, 2)[:, None, None] * np.ones((1, 2, 5))
        )

    @on_devices
    def test_more_keys_than_a_chunk_in_f32(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, rows=2, position=411, kv_dtype="f32", context=500)
        expected, magnitude = exact_scores(case)
        assert_close(run_qk(case, device)[:, :, : case.keys], expected, magnitude, 64)

    @on_devices
    def test_columns_behind_the_last_key_are_left_alone(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, rows=4, position=13)
        assert np.isnan(run_qk(case, device)[:, :, case.keys :]).all()


class TestSoftmax:
    @on_devices
    def test_random_rows(self, rng: np.random.Generator, device: str) -> None:
        check_softmax(rng.standard_normal((3, 5, 77)) * 3, device)

    @on_devices
    def test_large_scores(self, rng: np.random.Generator, device: str) -> None:
        check_softmax(rng.uniform(-1e4, 1e4, (2, 3, 61)), device)

    @on_devices
    def test_masked_scores_weigh_nothing(self, rng: np.random.Generator, device: str) -> None:
        scores = rng.standard_normal((2, 4, 45))
        scores[rng.random(scores.shape) < 0.5] = -np.inf
        scores[..., 0] = 0.0
        check_softmax(scores, device)
        assert (run_softmax(scores.astype(np.float32), device)[np.isneginf(scores)] == 0).all()

    @on_devices
    def test_fully_masked_rows_are_zero(self, rng: np.random.Generator, device: str) -> None:
        scores = rng.standard_normal((2, 3, 33)).astype(np.float32)
        scores[1, 2] = -np.inf
        y = run_softmax(scores, device)
        assert (y[1, 2] == 0).all()
        assert abs(y[1, 1].sum() - 1) < 1e-5

    @on_devices
    def test_very_long_rows(self, rng: np.random.Generator, device: str) -> None:
        check_softmax(rng.standard_normal((1, 2, int(rng.integers(20_001, 30_000) | 1))), device)

    @on_devices
    def test_equal_scores_share_evenly(self, device: str) -> None:
        y = run_softmax(np.full((1, 1, 97), -1e4, np.float32), device)
        np.testing.assert_allclose(y, 1 / 97, rtol=1e-6)

    @on_devices
    def test_columns_behind_the_last_key_are_left_alone(self, rng: np.random.Generator, device: str) -> None:
        y = run_softmax(rng.standard_normal((2, 3, 50)).astype(np.float32), device, keys=41)
        assert np.isnan(y[..., 41:]).all()
        np.testing.assert_allclose(y[..., :41].sum(-1), 1, rtol=1e-5)


class TestWeightedV:
    @on_devices
    @pytest.mark.parametrize("head_length", [32, 64, 80, 100, 256])
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int) -> None:
        case = make_case(rng, head_length=head_length, rows=3, position=29)
        check_weighted_v(case, rng.random((6, 3, 32)).astype(np.float32), device)

    @on_devices
    def test_weights_of_both_signs_in_f32(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, rows=2, position=int(rng.integers(20, 90)), kv_dtype="f32")
        check_weighted_v(case, rng.standard_normal((6, 2, case.keys)).astype(np.float32), device)

    @on_devices
    def test_many_keys(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, position=2500, context=2600)
        check_weighted_v(case, rng.random((2, 1, 2501)).astype(np.float32), device)

    @on_devices
    def test_one_hot_weights_pick_rows(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=6, kv_heads=3, rows=5, position=17)
        chosen = rng.integers(0, case.keys, (6, 5))
        p = np.zeros((6, 5, case.context), np.float32)
        np.put_along_axis(p, chosen[..., None], 1.0, axis=2)
        out = run_weighted_v(case, p, device)
        for h in range(6):
            for r in range(5):
                np.testing.assert_array_equal(out[r, h], case.v[h // 2, chosen[h, r]])


@on_devices
def test_chain_of_unfused_stages_is_attention(rng: np.random.Generator, device: str) -> None:
    check_chain(make_case(rng, heads=6, kv_heads=3, head_length=48, rows=13, position=21), device)


@on_devices
def test_chain_of_everything(rng: np.random.Generator, device: str) -> None:
    """A window, a soft-cap, ALiBi's slopes, sinks, and values that are a prefix of quantised keys."""
    case = make_case(
        rng,
        heads=6,
        kv_heads=2,
        head_length=96,
        value_length=40,
        v_from_k=True,
        kv_dtype="q8_0",
        rows=13,
        position=21,
        sinks=True,
        window=9,
        softcap=4.0,
        alibi=8.0,
    )
    check_chain(case, device)


def check_chain(case: Case, device: str) -> None:
    shape = (*common(device), case.heads, case.context)
    cap, window, alibi = (case.form.get(name, 0) for name in ("softcap", "window", "alibi"))
    stages: list[StageParams] = [ScaleParams(*shape, case.scale)]
    stages += [ScaleParams(*shape, cap, capped=True)] if cap else []
    stages += [MaskParams(*shape, True, window, alibi), SoftmaxParams(*shape, case.sinks is not None)]
    scores = run_qk(case, device)
    for params in stages:
        arrays = {"scores": scores, "y": np.zeros_like(scores)}
        if isinstance(params, SoftmaxParams) and case.sinks is not None:
            arrays["sinks"] = case.sinks
        scores = run_stage(params, arrays, state=case.state, device=device)["y"]
    expected, magnitude = exact_attention(case, True)
    assert_close(run_weighted_v(case, scores, device), expected, magnitude, case.keys + 48)
