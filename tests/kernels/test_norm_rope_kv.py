"""QK-norm, RoPE and the KV append in one stage, and RoPE's append where nothing rotates."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import NormRopeKVParams, RopeFields, RopeKVParams
from tests.kernels.harness import EVERY_DEVICE, OWN_CPU, State, assert_close, common, run_stage
from tests.kernels.test_matvec import rotate, rotate_bound

EPS = 1e-4


def fields(rng: np.random.Generator, rope_dims: int | None = None, interleaved: bool = False) -> RopeFields:
    """Random heads of a multiple of four elements, a part of them rotated."""
    head_length = 4 * int(rng.integers(1, 17))
    dims = 2 * int(rng.integers(1, head_length // 2 + 1)) if rope_dims is None else rope_dims
    heads, kv_heads = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    return RopeFields(heads, kv_heads, head_length, dims, interleaved, 13, "f32")


def arrays_of(rng: np.random.Generator, rope: RopeFields, rows: int) -> dict[str, np.ndarray]:
    angles = rng.uniform(0, 2 * np.pi, (rope.context, rope.rope_dims // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    cache = np.full((rope.kv_heads, rope.context, rope.head_length), 7, np.float32)
    return {
        "qkv": rng.standard_normal((rows, rope.width)).astype(np.float32) * np.float32(rng.uniform(0.1, 4)),
        **({"rope_table": table} if rope.rope_dims else {}),
        "q_out": np.full((rows, rope.heads, rope.head_length), np.nan, np.float32),
        "k_cache": cache,
        "v_cache": cache.copy(),
    }


def check(
    out: dict[str, np.ndarray], q: np.ndarray, k: np.ndarray, v: np.ndarray, rope: RopeFields, position: int
) -> None:
    """q, k, v float64 [rows, heads, head_length] before the rotation."""
    length = (rope.heads + rope.kv_heads) * rope.head_length
    for row in range(len(q)):
        q_row, k_row = q[row], k[row]
        q_bound, k_bound = np.abs(q_row) + 1e-2, np.abs(k_row) + 1e-2
        if rope.rope_dims:
            angle = out["rope_table"][position + row]
            q_row, k_row = rotate(q_row, angle, rope), rotate(k_row, angle, rope)
            q_bound, k_bound = rotate_bound(q_bound, rope), rotate_bound(k_bound, rope)
        assert_close(out["q_out"][row], q_row, q_bound, length)
        assert_close(out["k_cache"][:, position + row], k_row, k_bound, length)
        assert np.array_equal(out["v_cache"][:, position + row], v[row].astype(np.float32))
    others = np.delete(np.arange(rope.context), np.arange(position, position + len(q)))
    assert (out["k_cache"][:, others] == 7).all() and (out["v_cache"][:, others] == 7).all()


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize(
    ("span", "centred", "rotated", "interleaved"),
    [
        ("head", False, True, False),
        ("head", False, False, True),
        ("heads", True, True, True),
        ("row", False, True, False),
    ],
)
def test_norm_and_rotation(
    rng: np.random.Generator, span: str, centred: bool, rotated: bool, interleaved: bool, device: str
) -> None:
    rope = fields(rng, None if rotated else 0, interleaved)
    rows, position = int(rng.integers(1, 6)), int(rng.integers(0, 8))
    arrays = arrays_of(rng, rope, rows)
    length = rope.head_length
    shapes = {"head": (1, 1), "heads": (rope.heads, rope.kv_heads), "row": (rope.heads, rope.kv_heads)}[span]
    for name, count in zip(("q_norm", "k_norm"), shapes, strict=True):
        arrays[name] = rng.uniform(0.5, 1.5, (count, length)).astype(np.float32)
    out = run_stage(
        NormRopeKVParams(*common(device), rope, span, EPS, centred),
        arrays,
        state=State(rows=rows, position=position),
        device=device,
    )
    stacked = arrays["qkv"].reshape(rows, -1, length).astype(np.float64)
    q, k, v = np.split(stacked, [rope.heads, rope.heads + rope.kv_heads], axis=1)
    over = (1, 2) if span == "row" else (2,)

    def normed(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        y = y - y.mean(over, keepdims=True) if centred else y
        return y / np.sqrt((y**2).mean(over, keepdims=True) + EPS) * weight

    check(out, normed(q, arrays["q_norm"]), normed(k, arrays["k_norm"]), v, rope, position)


@pytest.mark.parametrize("device", [*EVERY_DEVICE, *OWN_CPU])
def test_nothing_rotates_without_a_table(rng: np.random.Generator, device: str) -> None:
    rope = fields(rng, 0, interleaved=True)
    rows, position = int(rng.integers(1, 6)), int(rng.integers(0, 8))
    arrays = arrays_of(rng, rope, rows)
    params = RopeKVParams(*common(device), rope)
    assert "rope_table" not in {arg.name for arg in params.args}
    out = run_stage(params, arrays, state=State(rows=rows, position=position), device=device)
    stacked = arrays["qkv"].reshape(rows, -1, rope.head_length).astype(np.float64)
    q, k, v = np.split(stacked, [rope.heads, rope.heads + rope.kv_heads], axis=1)
    check(out, q, k, v, rope, position)
