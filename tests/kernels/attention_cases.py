"""Shared by the tests of the attention stages: random cases, exact references in float64, error bounds.

Shapes follow the stages: q [rows, heads, head_length], caches [kv_heads, context, head_length], scores
[heads, rows, context].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.kernels.harness import EVERY_DEVICE, State, common

#: The CPU with its own templates and every other device with the common ones. At width 1 the common ones are
#: written for other register files and take clang seconds to unroll, so that one small test each has to do.
ATTENTION_DEVICES = ["cpu-own", *(p for p in EVERY_DEVICE if p.values[0] != "cpu")]
KV_DTYPES = {"f16": np.float16, "f32": np.float32}


@dataclass(frozen=True)
class Case:
    """Random q and caches of one attention; what lies behind position + rows in the caches is NaN."""

    heads: int
    kv_heads: int
    head_length: int
    context: int
    kv_dtype: str
    rows: int
    position: int
    q: np.ndarray  # f32 [rows, heads, head_length]
    k: np.ndarray  # f16 or f32 [kv_heads, context, head_length]
    v: np.ndarray

    @property
    def keys(self) -> int:
        return self.position + self.rows

    @property
    def scale(self) -> float:
        return float(self.head_length**-0.5)

    @property
    def state(self) -> State:
        return State(rows=self.rows, position=self.position)

    def params(
        self, device: str, block: int | None = None
    ) -> tuple[str, int, int, int, int, int, int, str, float]:
        """The fields with which the parameters of every attention stage begin."""
        shape = (self.heads, self.kv_heads, self.head_length, self.context)
        return (*common(device, block), *shape, self.kv_dtype, self.scale)

    def repeated(self, cache: np.ndarray) -> np.ndarray:
        """A cache's keys in float64 for every query head: [heads, keys, head_length]."""
        return np.repeat(cache[:, : self.keys].astype(np.float64), self.heads // self.kv_heads, axis=0)


def make_case(
    rng: np.random.Generator,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    head_length: int = 64,
    rows: int = 1,
    position: int = 0,
    kv_dtype: str = "f16",
    size: float = 1.0,
    context: int = 160,
) -> Case:
    """A random case; ``size`` scales queries, so that scores grow with it. Equal contexts share kernels."""
    dtype = KV_DTYPES[kv_dtype]
    q = (rng.standard_normal((rows, heads, head_length)) * size).astype(np.float32)
    k, v = rng.standard_normal((2, kv_heads, context, head_length)).astype(dtype)
    k[:, position + rows :], v[:, position + rows :] = np.nan, np.nan
    return Case(heads, kv_heads, head_length, context, kv_dtype, rows, position, q, k, v)


def exact_scores(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Unscaled q·k and the sums of |terms|: float64 [heads, rows, keys]."""
    keys, q = case.repeated(case.k), case.q.astype(np.float64)
    return np.einsum("rhd,hcd->hrc", q, keys), np.einsum("rhd,hcd->hrc", np.abs(q), np.abs(keys))


def exact_softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis; rows of nothing but -inf give zeros."""
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def exact_attention(case: Case, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Attention output [rows, heads, head_length] and a magnitude for ``assert_close``.

    A score's rounding error is relative to the sum of its |terms| and moves a weight by as much, relatively;
    so the error of the output is bounded by the weighted |v| times one plus the largest such sum.
    """
    scores, sizes = exact_scores(case)
    if causal:
        hidden = np.arange(case.keys)[None, :] > case.position + np.arange(case.rows)[:, None]
        scores = np.where(hidden, -np.inf, scores)
        sizes = np.where(hidden, 0.0, sizes)
    weights = exact_softmax(scores * case.scale)
    values = case.repeated(case.v)
    out = np.einsum("hrc,hcd->rhd", weights, values)
    bound = np.einsum("hrc,hcd->rhd", weights, np.abs(values))
    reach = 1.0 + 2.0 * case.scale * sizes.max(-1).T[:, :, None]
    return out, bound * reach
