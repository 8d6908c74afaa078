"""The stages of multi-head latent attention against float64: a matrix per head, rotation, norm and append."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.errors import VerifyError
from forgec.plan.stages import HeadMatvecParams, LatentParams
from forgec.plan.stages.cache import KVCache
from tests.kernels.harness import EPS32, EVERY_DEVICE, State, assert_close, common, packed_weights, run_stage


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("format", ["q8_0", "f16"])
def test_a_matrix_for_every_head(rng: np.random.Generator, format: str, device: str) -> None:
    heads, rows, cols = int(rng.integers(2, 5)), int(rng.integers(3, 70)), 32 * int(rng.integers(1, 4))
    pitch, out_pitch = cols + 32 * int(rng.integers(0, 2)), rows + int(rng.integers(0, 9))
    lanes, at_once = min(int(2 ** rng.integers(0, 5)), common(device)[1]), int(rng.integers(1, 4))
    params = HeadMatvecParams(*common(device), heads, format, rows, cols, pitch, out_pitch, lanes, at_once)
    weight, values = packed_weights(rng, "weight", format, heads * rows, cols)
    x = rng.standard_normal((heads, pitch)).astype(np.float32)
    arrays = {"x": x, "out": np.full((heads, out_pitch), 7, np.float32), **weight}
    out = run_stage(params, arrays, device=device)["out"]
    terms = values.reshape(heads, rows, cols) * x[:, None, :cols]
    assert_close(out[:, :rows], terms.sum(-1), np.abs(terms).sum(-1), cols)
    assert (out[:, rows:] == 7).all()


def test_heads_that_begin_within_a_slice_are_refused() -> None:
    with pytest.raises(VerifyError, match="heads of 48 elements; expected a multiple of 32"):
        HeadMatvecParams("cpu", 1, 1, 4, "q8_0", 64, 32, 48, 64, 1, 2)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize(("interleaved", "kv_dtype"), [(True, "f16"), (False, "f32")])
def test_turn_and_append(rng: np.random.Generator, interleaved: bool, kv_dtype: str, device: str) -> None:
    heads, nope, latent = int(rng.integers(1, 5)), 4 * int(rng.integers(1, 9)), 4 * int(rng.integers(1, 40))
    dims, rows, context = 4 * int(rng.integers(1, 10)), int(rng.integers(1, 5)), 11
    position = int(rng.integers(0, context - rows))
    cache = KVCache(1, latent + dims, latent, context, kv_dtype, v_from_k=True)
    params = LatentParams(*common(device), heads, nope, dims, interleaved, 1e-5, cache)
    angles = rng.uniform(0, 6, (context, dims // 2))
    arrays = {
        "q": rng.standard_normal((rows, heads, nope + dims)).astype(np.float32),
        "kv": rng.standard_normal((rows, latent + dims)).astype(np.float32),
        "norm_weight": rng.uniform(0.5, 1.5, latent).astype(np.float32),
        "rope_table": np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32),
        "q_out": np.full((rows, heads, latent + dims), 7, np.float32),
        "k_cache": np.full((context, latent + dims), 7, np.float16 if kv_dtype == "f16" else np.float32),
    }
    out = run_stage(params, arrays, state=State(rows=rows, position=position), device=device)
    table = arrays["rope_table"][position : position + rows].astype(np.float64)

    def turned(x: np.ndarray) -> np.ndarray:
        a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x.astype(np.float64), 2, axis=-1)
        shape = (rows, *[1] * (x.ndim - 2), dims // 2)
        cos, sin = table[..., 0].reshape(shape), table[..., 1].reshape(shape)
        pair = (a * cos - b * sin, a * sin + b * cos)
        return np.stack(pair, -1).reshape(x.shape) if interleaved else np.concatenate(pair, -1)

    assert (out["q_out"][..., :latent] == 7).all()
    assert_close(out["q_out"][..., latent:], turned(arrays["q"][..., nope:]), 8.0, 2)
    kv = arrays["kv"].astype(np.float64)
    factor = 1 / np.sqrt(np.mean(kv[:, :latent] ** 2, -1, keepdims=True) + 1e-5)
    key = np.concatenate([kv[:, :latent] * factor * arrays["norm_weight"], turned(kv[:, latent:])], -1)
    rounding = 2.0**-11 / EPS32 if kv_dtype == "f16" else 1.0
    assert_close(
        out["k_cache"][position : position + rows], key, (np.abs(key) + 4) * (1 + rounding / 8), latent
    )
    others = np.delete(out["k_cache"], np.arange(position, position + rows), axis=0)
    assert (others == 7).all()
