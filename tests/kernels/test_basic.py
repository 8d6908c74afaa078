"""Scale, causal mask, element-wise stages and the KV append against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import ElementwiseParams, KVAppendParams, KVCache, MaskParams, ScaleParams
from tests.kernels.harness import EVERY_DEVICE, State, assert_close, common, run_stage
from tests.kernels.test_matvec import FACTOR, applied

on_devices = pytest.mark.parametrize("device", EVERY_DEVICE)


def run_rows(params: ScaleParams | MaskParams, scores: np.ndarray, keys: int, device: str) -> np.ndarray:
    """A stage over rows [heads, rows, context] of which ``keys`` columns exist; the rest starts as 7."""
    rows = scores.shape[1]
    arrays = {"scores": scores, "y": np.full_like(scores, 7)}
    return run_stage(params, arrays, state=State(rows=rows, position=keys - rows), device=device)["y"]


def masked(scores: np.ndarray, keys: int, device: str, causal: bool = True) -> np.ndarray:
    params = MaskParams(*common(device), scores.shape[0], scores.shape[2], causal)
    return run_rows(params, scores, keys, device)


def random_scores(rng: np.random.Generator, heads: int, rows: int, context: int) -> np.ndarray:
    return rng.standard_normal((heads, rows, context)).astype(np.float32)


class TestScale:
    @on_devices
    def test_random(self, rng: np.random.Generator, device: str) -> None:
        scores, factor = random_scores(rng, 3, 5, 71), 0.37
        y = run_rows(ScaleParams(*common(device), 3, 71, factor), scores, 71, device)
        np.testing.assert_array_equal(y, scores * np.float32(factor))

    @on_devices
    def test_keeps_infinities(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 1, 2, 40)
        scores[0, 1, 3:9] = -np.inf
        y = run_rows(ScaleParams(*common(device), 1, 40, 0.125), scores, 40, device)
        np.testing.assert_array_equal(y, scores * np.float32(0.125))

    @on_devices
    def test_leaves_columns_behind_the_last_key_alone(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 2, 3, 50)
        y = run_rows(ScaleParams(*common(device), 2, 50, 3.0), scores, 37, device)
        np.testing.assert_array_equal(y[..., :37], scores[..., :37] * np.float32(3))
        assert (y[..., 37:] == 7).all()


class TestCausalMask:
    @on_devices
    def test_first_chunk(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 3, 37, 37)
        expected = np.where(np.tril(np.ones((37, 37), bool)), scores, -np.inf)
        np.testing.assert_array_equal(masked(scores, 37, device), expected)

    @on_devices
    def test_later_chunk(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 2, 9, 60)
        visible = np.arange(60)[None, :] <= 51 + np.arange(9)[:, None]
        np.testing.assert_array_equal(masked(scores, 60, device), np.where(visible, scores, -np.inf))

    @on_devices
    def test_last_row_sees_everything(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 1, 1, 83)
        np.testing.assert_array_equal(masked(scores, 83, device), scores)

    @on_devices
    def test_not_causal_hides_nothing(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 2, 11, 23)
        np.testing.assert_array_equal(masked(scores, 23, device, causal=False), scores)

    @on_devices
    def test_hides_nan_and_infinity(self, rng: np.random.Generator, device: str) -> None:
        scores = random_scores(rng, 1, 4, 4)
        scores[0, 0, 1:] = [np.nan, np.inf, -np.inf]
        y = masked(scores, 4, device)
        assert y[0, 0, 0] == scores[0, 0, 0]
        assert np.isneginf(y[0, 0, 1:]).all()

    @on_devices
    def test_leaves_columns_behind_the_last_key_alone(self, rng: np.random.Generator, device: str) -> None:
        y = masked(random_scores(rng, 2, 3, 50), 29, device)
        assert (y[..., 29:] == 7).all()


class TestElementwise:
    def run(self, op: str, rows: int, device: str, *given: np.ndarray, factor: float = 1.0) -> np.ndarray:
        params = ElementwiseParams(*common(device), op, given[0].shape[1], factor)
        arrays = {**dict(zip("ab", given, strict=False)), "y": np.full_like(given[0], np.nan)}
        return run_stage(params, arrays, state=State(rows=rows), device=device)["y"]

    @on_devices
    def test_add(self, rng: np.random.Generator, device: str) -> None:
        a, b = rng.standard_normal((2, 5, 577)).astype(np.float32)
        np.testing.assert_array_equal(self.run("add", 5, device, a, b), a + b)

    @on_devices
    def test_mul(self, rng: np.random.Generator, device: str) -> None:
        a, b = rng.standard_normal((2, 3, 1025)).astype(np.float32)
        np.testing.assert_array_equal(self.run("mul", 3, device, a, b), a * b)

    @on_devices
    def test_scale(self, rng: np.random.Generator, device: str) -> None:
        a = rng.standard_normal((4, 33)).astype(np.float32)
        np.testing.assert_array_equal(self.run("scale", 4, device, a, factor=-0.3), a * np.float32(-0.3))

    @on_devices
    def test_silu(self, rng: np.random.Generator, device: str) -> None:
        a = (rng.standard_normal((2, 801)) * 8).astype(np.float32)
        exact = a.astype(np.float64)
        expected = exact / (1 + np.exp(-exact))
        assert_close(self.run("silu", 2, device, a), expected, np.abs(expected) * (1 + np.abs(exact)), 4)

    @on_devices
    @pytest.mark.parametrize("op", ["gelu", "squared_relu", "softcap", "clamp"])
    def test_functions(self, rng: np.random.Generator, op: str, device: str) -> None:
        a = (rng.standard_normal((2, 401)) * 4).astype(np.float32)
        a[0, :5] = [-1e4, -200, 0, 200, 1e4]
        expected, slope = applied(op, a.astype(np.float64))
        y = self.run(op, 2, device, a, factor=FACTOR)
        # A rounding of the exponent of 2 counts as often as the exponent is large.
        assert_close(y, expected, slope * np.abs(a) + np.abs(expected) * (1 + np.abs(a)) + FACTOR, 4)

    @on_devices
    def test_silu_of_extreme_values(self, device: str) -> None:
        a = np.array([[-1e4, -200.0, 0.0, 200.0, 1e4]], np.float32)
        np.testing.assert_array_equal(self.run("silu", 1, device, a), [[0, 0, 0, 200, 1e4]])

    @on_devices
    def test_rows_behind_the_last_are_left_alone(self, rng: np.random.Generator, device: str) -> None:
        a, b = rng.standard_normal((2, 7, 130)).astype(np.float32)
        y = self.run("add", 4, device, a, b)
        assert np.isnan(y[4:]).all()
        np.testing.assert_array_equal(y[:4], (a + b)[:4])


class TestKVAppend:
    def run(
        self,
        rng: np.random.Generator,
        device: str,
        kv_dtype: str,
        rows: int,
        position: int,
        head_length: int = 48,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(k, v) f32 [rows, 3, head_length] as given, and the arrays after; caches start as -1."""
        k, v = (rng.standard_normal((2, rows, 3, head_length)) * 10).astype(np.float32)
        params = KVAppendParams(*common(device), KVCache(3, head_length, head_length, 40, kv_dtype))
        cache = np.full((3, 40, head_length), -1, np.float16 if kv_dtype == "f16" else np.float32)
        arrays = {"k": k, "v": v, "k_cache": cache, "v_cache": cache.copy()}
        return k, v, run_stage(params, arrays, state=State(rows=rows, position=position), device=device)

    @on_devices
    @pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
    def test_rows_land_at_their_positions(self, rng: np.random.Generator, device: str, kv_dtype: str) -> None:
        rows, position = int(rng.integers(2, 9)), int(rng.integers(1, 30))
        k, v, after = self.run(rng, device, kv_dtype, rows, position)
        for name, given in (("k_cache", k), ("v_cache", v)):
            expected = given.transpose(1, 0, 2).astype(after[name].dtype)
            np.testing.assert_array_equal(after[name][:, position : position + rows], expected)

    @on_devices
    def test_other_positions_are_left_alone(self, rng: np.random.Generator, device: str) -> None:
        after = self.run(rng, device, "f16", 5, 11)[2]
        for name in ("k_cache", "v_cache"):
            assert (np.delete(after[name], np.s_[11:16], axis=1) == -1).all()

    @on_devices
    def test_last_position_of_the_context(self, rng: np.random.Generator, device: str) -> None:
        k, _, after = self.run(rng, device, "f32", 1, 39, head_length=20)
        np.testing.assert_array_equal(after["k_cache"][:, 39], k[0])
