"""The search for scales: blocks of float32 in, each block's scale (and minimum) of least squared error out.

Arrays are [elements of a block, blocks], so that NumPy's inner loops run over blocks. Every candidate rounds
the block once and solves for the best scale of those codes in closed form; the best candidate wins. Nothing
here knows how a type stores its codes. Source of the method: weighted least squares as in ggml's
make_qx_quants and make_qkx2_quants (ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "Weighting", "fit_affine", "fit_scale", "importance", "reciprocal", "square"]

Floats = npt.NDArray[np.float32]
Weighting = Callable[[Floats], Floats]


def square(x: Floats) -> Floats:
    """Elements count by their square: large weights of a row move its product most."""
    return x * x


def importance(x: Floats) -> Floats:
    """Elements count by their size on top of the block's root mean square."""
    weights = np.abs(x)
    weights += np.sqrt(np.einsum("ij,ij->j", x, x) / np.float32(len(x)))
    return weights


def reciprocal(x: Floats) -> Floats:
    """1 / x, and 0 where that is no finite float32."""
    with np.errstate(all="ignore"):
        inverse = np.divide(np.float32(1), x, dtype=np.float32)
    return np.where(np.isfinite(inverse), inverse, np.float32(0)).astype(np.float32)


def _rounded(x: Floats, inverse: Floats, low: float, high: float, out: Floats) -> Floats:
    """Codes of x at scale 1 / inverse, as floats."""
    np.multiply(x, inverse, out=out)
    np.rint(out, out=out)
    np.clip(out, low, high, out=out)
    return out


def fit_scale(x: Floats, weights: Floats, low: int, high: int, offsets: tuple[float, ...]) -> Floats:
    """Scales s [blocks] that minimise the sum of weights * (x - s * q)^2 over integers low <= q <= high.

    ``offsets`` are the candidates: the element of largest magnitude is put at (the end of the range with the
    larger magnitude) + offset. The scale may be negative. One more candidate rounds again at the best of
    them.
    """
    extreme = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    inverse_extreme = reciprocal(extreme)
    end = low if -low >= high else high
    weighted = weights * x
    best: Floats = np.zeros_like(extreme)
    scale: Floats = np.zeros_like(extreme)
    q, wq = np.empty_like(x), np.empty_like(x)
    candidates: tuple[float | None, ...] = (*offsets, None)
    for offset in candidates:
        inverse = reciprocal(scale) if offset is None else (end + np.float32(offset)) * inverse_extreme
        _rounded(x, inverse, low, high, q)
        np.multiply(weights, q, out=wq)
        xq = np.einsum("ij,ij->j", weighted, q)
        candidate = xq * reciprocal(np.einsum("ij,ij->j", wq, q))
        gain = xq * candidate
        better = gain > best
        np.copyto(scale, candidate, where=better)
        np.copyto(best, gain, where=better)
    return scale


@dataclass(frozen=True)
class _Sums:
    """Weighted sums of one candidate, per block in float64: of 1, x, q, q^2 and x * q."""

    one: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    q: npt.NDArray[np.float64]
    qq: npt.NDArray[np.float64]
    xq: npt.NDArray[np.float64]

    def solve(self, *, below_zero: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(scale, minimum) of the least squares; with ``below_zero`` a positive minimum becomes zero."""
        determinant = self.one * self.qq - self.q * self.q
        with np.errstate(all="ignore"):
            inverse = np.where(determinant > 0, 1 / determinant, 0.0)
            scale = (self.one * self.xq - self.x * self.q) * inverse
            minimum = (self.qq * self.x - self.q * self.xq) * inverse
            # All codes equal: the minimum alone must do.
            minimum = np.where(determinant > 0, minimum, self.x / self.one)
            if below_zero:
                alone = np.where(self.qq > 0, self.xq / self.qq, 0.0)
                scale = np.where(minimum > 0, alone, scale)
                minimum = np.minimum(minimum, 0.0)
        return scale, minimum

    def excess(
        self, scale: npt.NDArray[np.float64], minimum: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The squared error, less the sum of weights * x^2 that all candidates share."""
        squares = scale * scale * self.qq + minimum * minimum * self.one
        return squares + 2 * (scale * minimum * self.q - scale * self.xq - minimum * self.x)


def fit_affine(
    x: Floats, weights: Floats, levels: int, offsets: tuple[float, ...], *, below_zero: bool
) -> tuple[Floats, Floats]:
    """(scales s, minima m), each [blocks]: least weights * (x - s * q - m)^2 over integers 0 <= q <= levels.

    ``offsets`` are the candidates: the range of the block is spread over ``levels`` + offset steps; one more
    rounds again at the best of them. ``below_zero`` keeps m <= 0, which the K types need.
    """
    low, high = x.min(0), x.max(0)
    if below_zero:
        np.minimum(low, 0, out=low)
    inverse_range = reciprocal(high - low)
    weighted = weights * x
    one = np.maximum(weights.sum(0, dtype=np.float64), 1e-300)
    x_sum = weighted.sum(0, dtype=np.float64)
    best = np.full(x.shape[1], np.inf)
    scale, minimum = np.zeros_like(best), np.zeros_like(best)
    q, wq = np.empty_like(x), np.empty_like(x)
    for offset in (*offsets, None):
        start = low if offset is not None else minimum.astype(np.float32)
        step = (levels + np.float32(offset)) * inverse_range if offset is not None else None
        inverse = step if step is not None else reciprocal(scale.astype(np.float32))
        np.subtract(x, start, out=wq)
        _rounded(wq, inverse, 0, levels, q)
        np.multiply(weights, q, out=wq)
        sums = _Sums(
            one,
            x_sum,
            wq.sum(0).astype(np.float64),
            np.einsum("ij,ij->j", wq, q).astype(np.float64),
            np.einsum("ij,ij->j", weighted, q).astype(np.float64),
        )
        candidate = sums.solve(below_zero=below_zero)
        error = sums.excess(*candidate)
        better = error < best
        np.copyto(scale, candidate[0], where=better)
        np.copyto(minimum, candidate[1], where=better)
        np.copyto(best, error, where=better)
    return scale.astype(np.float32), minimum.astype(np.float32)
