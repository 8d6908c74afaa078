"""The meaning of the sampler, bit for bit: logits, settings and the index of the token in, one token id out.

The order is temperature, then top-k, then top-p, as in Hugging Face transformers and vLLM. Weights are
fixed-point integers and the random number depends on seed and index alone, so that this module and every
device agree on each token exactly; nothing here keeps a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import UsageError

__all__ = [
    "SamplerSettings",
    "masses",
    "philox4x32",
    "philox_u64",
    "philox_uniform",
    "probabilities",
    "sample",
    "surviving",
]

_MASK = 0xFFFFFFFF
#: Weight of the largest logit: weights are in units of 2^-40.
_ONE = 1 << 40
#: Polynomial of 2^r - 1 over r on [0, 1) in units of 2^-31, highest power first (minimax, error 2e-9).
_POLYNOMIAL = (464134, 2677449, 20777875, 119153732, 515888506, 1488521944)

Masses = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SamplerSettings:
    """``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 or more are off; ``seed`` has 64 bits.

    Raises UsageError for a negative temperature or top_k, a top_p of 0 or less, or a seed beyond 64 bits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"temperature is {self.temperature}; expected 0 or more")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; expected 0 or more")
        if not self.top_p > 0:
            raise UsageError(f"top_p is {self.top_p}; expected more than 0")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed is {self.seed}; expected 64 bits")


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32: four 32-bit words of counter and two of key to four random words.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def philox_u64(seed: int, index: int) -> int:
    """64 random bits per token ``index``: Philox words 0 (low) and 1 (high) of counter (index, 0, 0, 0)."""
    words = philox4x32((index & _MASK, 0, 0, 0), (seed & _MASK, seed >> 32))
    return words[1] << 32 | words[0]


def philox_uniform(seed: int, index: int) -> float:
    """The same bits as a number in [0, 1]: over 2^64, rounded to float64."""
    return philox_u64(seed, index) / 2.0**64


def masses(logits: npt.NDArray[Any], temperature: float) -> Masses:
    """Softmax weights at ``temperature`` > 0 in units of 2^-40 of the largest: uint64 [vocabulary].

    The logits are taken as f32. Every logit equal to the largest weighs exactly 2^40; below 2^-41 of that a
    weight is 0, and so is that of a NaN. One f32 subtraction and one f32 product come first, the rest is
    integer arithmetic.
    """
    x = np.asarray(logits, np.float32)
    numbers = ~np.isnan(x)
    if not numbers.any():
        return np.zeros(x.shape, np.uint64)
    top = x[numbers].max()
    with np.errstate(all="ignore"):
        y = (x - top) * (np.float32(1.4426950408889634) / np.float32(temperature))
        heard = y > np.float32(-41.0)
    fixed = (np.where(heard, y, np.float32(0)) * np.float32(2**24)).astype(np.int32)
    fraction = (fixed.view(np.uint32) << np.uint32(8)).astype(np.uint64)
    power = np.full(x.shape, _POLYNOMIAL[0], np.uint64)
    for coefficient in (*_POLYNOMIAL[1:], 1 << 31):
        power = np.uint64(coefficient) + ((power * fraction) >> np.uint64(32))
    shifted = (power << np.uint64(9)) >> (-(fixed >> 24)).astype(np.uint64)
    found: Masses = np.where(x == top, np.uint64(_ONE), np.where(heard, shifted, np.uint64(0)))
    return found


def surviving(logits: npt.NDArray[Any], settings: SamplerSettings) -> Masses:
    """The weights of ``masses`` with 0 for what top-k and top-p cut: uint64 [vocabulary].

    top-k keeps the k largest logits, top-p of these the fewest in descending order whose weights reach top_p
    (in units of 2^-32, rounded down) of their sum: the token that crosses the edge stays. Of equal logits at
    an edge those with lower ids stay.
    """
    x = np.asarray(logits, np.float32)
    weights = masses(x, settings.temperature)
    order = np.argsort(-np.where(np.isnan(x), np.float32(-np.inf), x), kind="stable")
    order = order[~np.isnan(x[order])]
    if 0 < settings.top_k < x.size:
        order = order[: settings.top_k]
    if np.float32(settings.top_p) < 1:
        cumulated = np.cumsum(weights[order], dtype=np.uint64)
        share = int(np.float32(settings.top_p) * np.float32(2**32))
        goal = max(1, -(-share * int(cumulated[-1]) // 2**32)) if order.size else 0
        order = order[: int(np.searchsorted(cumulated, np.uint64(goal))) + 1]
    kept = np.zeros_like(weights)
    kept[order] = weights[order]
    return kept


def probabilities(logits: npt.NDArray[Any], settings: SamplerSettings) -> npt.NDArray[np.float64]:
    """The distribution that a token is drawn from: float64 [vocabulary], sum 1."""
    if settings.temperature == 0:
        certain = np.zeros(np.shape(logits), np.float64)
        certain[_greedy(logits)] = 1.0
        return certain
    kept = surviving(logits, settings).astype(np.float64)
    shares: npt.NDArray[np.float64] = kept / max(kept.sum(), 1.0)
    return shares


def sample(logits: npt.NDArray[Any], settings: SamplerSettings, index: int) -> int:
    """Token ``index`` of a sequence: the first id, in order of id, at which the sum of weights exceeds the
    random number of ``index`` times the whole. Greedy takes the lowest id among the largest logits; a NaN
    loses against everything, and all NaN give token 0."""
    if settings.temperature == 0 or np.isnan(np.asarray(logits, np.float32)).all():
        return _greedy(logits)
    cumulated = np.cumsum(surviving(logits, settings), dtype=np.uint64)
    threshold = philox_u64(settings.seed, index) * int(cumulated[-1]) >> 64
    return int(np.searchsorted(cumulated, np.uint64(threshold), side="right"))


def _greedy(logits: npt.NDArray[Any]) -> int:
    x = np.asarray(logits, np.float32)
    numbers = np.flatnonzero(~np.isnan(x))
    return int(numbers[np.argmax(x[numbers])]) if numbers.size else 0
