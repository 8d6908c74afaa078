"""RoPE and the KV append of prompt rows."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import RopeFields, RopeKVParams
from tests.kernels.harness import EVERY_DEVICE, OWN_CPU, State, assert_close, common, run_stage
from tests.kernels.test_matvec import rotate, rotate_bound


@pytest.mark.parametrize("device", [*EVERY_DEVICE, *OWN_CPU])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
def test_prompt_rows(rng: np.random.Generator, interleaved: bool, kv_dtype: str, device: str) -> None:
    head_length = 2 * int(rng.integers(2, 33))
    rope_dims = 2 * int(rng.integers(1, head_length // 2 + 1))
    check(rng, head_length, rope_dims, interleaved, kv_dtype, device)


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_dims", [16, 48, 64])
def test_heads_of_whole_vectors(
    rng: np.random.Generator, rope_dims: int, interleaved: bool, device: str
) -> None:
    check(rng, 64, rope_dims, interleaved, str(rng.choice(["f16", "f32"])), device)


def check(
    rng: np.random.Generator, head_length: int, rope_dims: int, interleaved: bool, kv_dtype: str, device: str
) -> None:
    rope = RopeFields(
        heads=int(rng.integers(1, 7)),
        kv_heads=int(rng.integers(1, 4)),
        head_length=head_length,
        rope_dims=rope_dims,
        interleaved=interleaved,
        context=13,
        kv_dtype=kv_dtype,
    )
    rows, position = int(rng.integers(1, 6)), int(rng.integers(0, 8))
    dtype = np.float16 if kv_dtype == "f16" else np.float32
    angles = rng.uniform(0, 2 * np.pi, (rope.context, rope.rope_dims // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    qkv = rng.standard_normal((rows, rope.width)).astype(np.float32)
    cache = np.full((rope.kv_heads, rope.context, head_length), 7, dtype)
    arrays = {
        "qkv": qkv,
        "rope_table": table,
        "q_out": np.full((rows, rope.heads, head_length), np.nan, np.float32),
        "k_cache": cache,
        "v_cache": cache.copy(),
    }
    out = run_stage(
        RopeKVParams(*common(device), rope), arrays, state=State(rows=rows, position=position), device=device
    )
    heads = qkv.reshape(rows, -1, head_length).astype(np.float64)
    cache_error = 2.0**-11 * np.abs(heads).max() / 2.0**-20 if kv_dtype == "f16" else 0.0
    for row in range(rows):
        q, k, v = np.split(heads[row], [rope.heads, rope.heads + rope.kv_heads])
        angle = table[position + row]
        bound = rotate_bound(np.abs(q), rope) + 1e-3
        assert_close(out["q_out"][row], rotate(q, angle, rope), bound, 2)
        bound = rotate_bound(np.abs(k), rope) + 1e-3 + 2 * cache_error
        assert_close(out["k_cache"][:, position + row], rotate(k, angle, rope), bound, 2)
        assert np.array_equal(out["v_cache"][:, position + row], v.astype(dtype))
    others = np.delete(np.arange(rope.context), np.arange(position, position + rows))
    assert (out["k_cache"][:, others] == 7).all() and (out["v_cache"][:, others] == 7).all()
