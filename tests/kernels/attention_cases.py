"""Shared by the tests of the attention stages: random cases, exact references in float64, error bounds.

Shapes follow the stages: q [rows, heads, key_length], caches [kv_heads, positions, length], scores
[heads, rows, keys].
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from forgec.plan.stages import KVCache
from forgec.reference.ops import alibi_slopes
from tests.kernels.harness import EVERY_DEVICE, State, common

#: The CPU with its own templates and every other device with the common ones. At width 1 the common ones are
#: written for other register files and take clang seconds to unroll, so that one small test each has to do.
ATTENTION_DEVICES = ["cpu-own", *(p for p in EVERY_DEVICE if p.values[0] != "cpu")]
KV_DTYPES: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "q8_0": np.uint8}


def with_forms(forms: Mapping[str, object], again: Collection[str]) -> list[Any]:
    """(device, form) of all devices; gfx942, which differs from gfx1100 in its wave, takes ``again``."""
    pairs = itertools.product(ATTENTION_DEVICES, forms)
    return [
        pytest.param(name, form, marks=device.marks if device != name else ())
        for device, form in pairs
        for name in (device if isinstance(device, str) else device.values[0],)
        if name != "emulated-gfx942" or form in again
    ]


@dataclass(frozen=True)
class Case:
    """Random q and caches of one attention; cache rows of other than the visible positions hold NaN.

    ``k`` and ``v`` are what position p holds, float64 [kv_heads, position + rows, length]; ``k_cache`` and
    ``v_cache`` the arrays that a stage reads. ``form`` has window, softcap, alibi and sinks of the stage.
    """

    heads: int
    cache: KVCache
    context: int
    rows: int
    position: int
    q: np.ndarray  # f32 [rows, heads, key_length]
    k: np.ndarray
    v: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    form: dict[str, Any] = field(default_factory=dict)
    sinks: np.ndarray | None = None

    @property
    def kv_heads(self) -> int:
        return self.cache.kv_heads

    @property
    def keys(self) -> int:
        return self.position + self.rows

    @property
    def scale(self) -> float:
        return float(self.cache.key_length**-0.5)

    @property
    def state(self) -> State:
        return State(rows=self.rows, position=self.position)

    def params(self, device: str, block: int | None = None) -> tuple[Any, ...]:
        """The fields with which the parameters of the fused stages begin."""
        form = {"window": 0, "softcap": 0.0, "alibi": 0.0} | self.form
        return (
            *common(device, block),
            self.heads,
            self.cache,
            self.scale,
            *form.values(),
            self.sinks is not None,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arguments that the fused stages read."""
        given = {"q": self.q, "k_cache": self.k_cache}
        if not self.cache.v_from_k:
            given["v_cache"] = self.v_cache
        if self.sinks is not None:
            given["sinks"] = self.sinks
        return given

    def repeated(self, rows: np.ndarray) -> np.ndarray:
        """What the positions hold, for every query head: float64 [heads, keys, length]."""
        return np.repeat(rows[:, : self.keys], self.heads // self.kv_heads, axis=0)


def make_case(
    rng: np.random.Generator,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    head_length: int = 64,
    value_length: int | None = None,
    rows: int = 1,
    position: int = 0,
    kv_dtype: str = "f16",
    size: float = 1.0,
    context: int = 160,
    ring: int = 0,
    v_from_k: bool = False,
    sinks: bool = False,
    **form: Any,
) -> Case:
    """A random case; ``size`` scales queries, so that scores grow with it. Equal contexts share kernels.

    ``ring`` keeps that many positions; ``form`` is window, softcap and alibi.
    """
    lengths = (head_length, value_length or head_length)
    cache = KVCache(kv_heads, *lengths, ring or context, kv_dtype, ring > 0, v_from_k)
    q = (rng.standard_normal((rows, heads, head_length)) * size).astype(np.float32)
    keys, arrays = position + rows, []
    for length in (head_length, head_length if v_from_k else lengths[1]):
        stored = rng.standard_normal((kv_heads, keys, length)).astype(np.float32)
        arrays += store(stored, cache)
    k, k_cache, v, v_cache = arrays
    if v_from_k:
        v = k[..., : lengths[1]]
    logits = rng.standard_normal(heads).astype(np.float32) if sinks else None
    return Case(heads, cache, context, rows, position, q, k, v, k_cache, v_cache, form, logits)


def store(rows: np.ndarray, cache: KVCache) -> tuple[np.ndarray, np.ndarray]:
    """f32 [kv_heads, keys, length] as a cache rounds it, in float64, and the cache's array."""
    kv_heads, keys, length = rows.shape
    held = np.arange(max(0, keys - cache.positions), keys)  # the positions that are still there
    at = held % cache.positions if cache.ring else held
    if cache.dtype != "q8_0":
        array = np.full((kv_heads, cache.positions, length), np.nan, KV_DTYPES[cache.dtype])
        array[:, at] = rows[:, held]
        return rows.astype(array.dtype).astype(np.float64), array
    scales, quants = quantise_row(rows)
    all_quants = np.full((kv_heads, cache.positions, length), 99, np.int8)
    all_scales = np.full((kv_heads, cache.positions, length // 32), np.nan, np.float16)
    all_quants[:, at], all_scales[:, at] = quants[:, held], scales[:, held]
    exact = (scales.astype(np.float64)[..., None] * quants.reshape(*scales.shape, 32)).reshape(rows.shape)
    return exact, np.concatenate([all_quants.view(np.uint8).ravel(), all_scales.view(np.uint8).ravel()])


def quantise_row(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f16 scales [..., length / 32] and int8 [..., length] of f32 rows, as ggml makes q8_0."""
    blocks = rows.astype(np.float32).reshape(*rows.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    quants = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return (largest / np.float32(127)).astype(np.float16), quants.reshape(rows.shape)


def exact_scores(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Unscaled q·k and the sums of |terms|: float64 [heads, rows, keys]."""
    keys, q = case.repeated(case.k), case.q.astype(np.float64)
    return np.einsum("rhd,hcd->hrc", q, keys), np.einsum("rhd,hcd->hrc", np.abs(q), np.abs(keys))


def exact_softmax(scores: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """Softmax over the last axis; rows of nothing but -inf give zeros. ``sinks`` [heads] joins the sum."""
    top = scores.max(-1, keepdims=True)
    sink = np.full((len(scores), 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
    top = np.maximum(top, sink)
    zero = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - zero)
    return weights / np.maximum(weights.sum(-1, keepdims=True) + np.exp(sink - zero), 1e-300)


def visible(case: Case, causal: bool) -> np.ndarray:
    """Which keys a row sees: bool [rows, keys]."""
    own, key = case.position + np.arange(case.rows)[:, None], np.arange(case.keys)[None, :]
    seen = key <= own if causal else np.ones((case.rows, case.keys), bool)
    window = case.form.get("window", 0)
    return seen & (key > own - window) if window else seen


def exact_attention(case: Case, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Attention output [rows, heads, value_length] and a magnitude for ``assert_close``.

    A score's rounding error is relative to the sum of its |terms| (and to the cap and the bias where there
    are some) and moves a weight by as much, relatively; so the error of the output is bounded by the weighted
    |v| times one plus the largest such sum.
    """
    scores, sizes = exact_scores(case)
    scores, sizes = scores * case.scale, sizes * case.scale
    cap, max_bias = case.form.get("softcap", 0.0), case.form.get("alibi", 0.0)
    if cap:
        scores, sizes = cap * np.tanh(scores / cap), sizes + cap
    if max_bias:
        distance = np.arange(case.keys)[None, :] - case.position - np.arange(case.rows)[:, None]
        bias = alibi_slopes(case.heads, max_bias)[:, None, None] * distance
        scores, sizes = scores + bias, sizes + np.abs(bias)
    seen = visible(case, causal)
    scores, sizes = np.where(seen, scores, -np.inf), np.where(seen, sizes, 0.0)
    weights = exact_softmax(scores, case.sinks)
    values = case.repeated(case.v)
    out = np.einsum("hrc,hcd->rhd", weights, values)
    bound = np.einsum("hrc,hcd->rhd", weights, np.abs(values))
    return out, bound * (1.0 + 2.0 * sizes.max(-1).T[:, :, None])
