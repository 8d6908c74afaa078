"""Rotary position embedding against float64: both pairings, partial rotation, positions."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import RopeParams
from tests.kernels.harness import EVERY_DEVICE, State, assert_close, common, run_stage

on_devices = pytest.mark.parametrize("device", EVERY_DEVICE)
CONTEXT = 64


def table(dims: int) -> np.ndarray:
    """(cos, sin) of position * 10000^(-2i/dims): float64 [CONTEXT, dims / 2, 2]."""
    angles = np.arange(CONTEXT)[:, None] * 10000.0 ** (-2.0 * np.arange(dims // 2) / dims)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def rope(
    x: np.ndarray,
    dims: int,
    interleaved: bool,
    position: int,
    device: str,
    rope_table: np.ndarray | None = None,
) -> np.ndarray:
    rows, heads, head_length = x.shape
    params = RopeParams(*common(device), heads, head_length, dims, interleaved)
    rope_table = (table(dims) if rope_table is None else rope_table).astype(np.float32)
    arrays = {"x": x, "rope_table": rope_table, "y": np.full_like(x, np.nan)}
    return run_stage(params, arrays, state=State(rows=rows, position=position), device=device)["y"]


def check(x: np.ndarray, dims: int, interleaved: bool, position: int, device: str) -> None:
    """Against complex numbers: a pair is one number, turning is a product with cos + i sin."""
    turn = table(dims).astype(np.float32).astype(np.float64)[position : position + len(x)]
    unit = (turn[..., 0] + 1j * turn[..., 1])[:, None, :]
    exact = x.astype(np.float64)
    expected = exact.copy()
    halves = (
        (slice(0, dims, 2), slice(1, dims, 2))
        if interleaved
        else (slice(0, dims // 2), slice(dims // 2, dims))
    )
    turned = (exact[..., halves[0]] + 1j * exact[..., halves[1]]) * unit
    expected[..., halves[0]], expected[..., halves[1]] = turned.real, turned.imag
    magnitude = np.abs(exact)
    magnitude[..., halves[0]] = magnitude[..., halves[1]] = np.abs(turned) * 1.5
    assert_close(rope(x, dims, interleaved, position, device), expected, magnitude, 2)


def random_heads(rng: np.random.Generator, rows: int, heads: int, head_length: int) -> np.ndarray:
    return rng.standard_normal((rows, heads, head_length)).astype(np.float32)


@on_devices
def test_halves(rng: np.random.Generator, device: str) -> None:
    check(random_heads(rng, 5, 3, 64), 64, False, int(rng.integers(0, CONTEXT - 5)), device)


@on_devices
def test_interleaved(rng: np.random.Generator, device: str) -> None:
    check(random_heads(rng, 5, 3, 64), 64, True, int(rng.integers(0, CONTEXT - 5)), device)


@on_devices
@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rotation(rng: np.random.Generator, device: str, interleaved: bool) -> None:
    x = random_heads(rng, 4, 2, 80)
    check(x, 32, interleaved, 17, device)
    np.testing.assert_array_equal(rope(x, 32, interleaved, 17, device)[..., 32:], x[..., 32:])


@on_devices
def test_position_zero_changes_nothing(rng: np.random.Generator, device: str) -> None:
    x = random_heads(rng, 1, 7, 96)
    np.testing.assert_array_equal(rope(x, 96, False, 0, device), x)


@on_devices
def test_last_position_of_the_table(rng: np.random.Generator, device: str) -> None:
    check(random_heads(rng, 1, 9, 128), 128, False, CONTEXT - 1, device)


@on_devices
def test_more_pairs_than_lanes(rng: np.random.Generator, device: str) -> None:
    check(random_heads(rng, 3, 2, 256), 252, True, 31, device)


@on_devices
def test_dot_products_depend_on_distance_only(rng: np.random.Generator, device: str) -> None:
    q, k = random_heads(rng, 1, 1, 64), random_heads(rng, 1, 1, 64)
    dots = [
        float((rope(q, 64, False, p + 5, device).astype(np.float64) * rope(k, 64, False, p, device)).sum())
        for p in (0, 13, 50)
    ]
    np.testing.assert_allclose(dots, dots[0], atol=1e-4)


@on_devices
def test_table_is_used_as_given(rng: np.random.Generator, device: str) -> None:
    x = random_heads(rng, 2, 2, 32)
    quarter = np.zeros((CONTEXT, 16, 2))
    quarter[..., 1] = 1.0  # cos 0, sin 1: (u, v) becomes (-v, u)
    y = rope(x, 32, True, 3, device, quarter)
    np.testing.assert_array_equal(y[..., 0::2], -x[..., 1::2])
    np.testing.assert_array_equal(y[..., 1::2], x[..., 0::2])
