"""The meaning of the sampler: logits, settings and the index of the token in, one token id out.

The order is temperature, then top-k, then top-p, as in Hugging Face transformers and vLLM. The random number
depends on seed and index alone, so a token can be drawn again; nothing here keeps a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import UsageError

__all__ = ["SamplerSettings", "philox4x32", "philox_uniform", "probabilities", "sample"]

_MASK = 0xFFFFFFFF


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


def philox_uniform(seed: int, index: int) -> float:
    """A number in [0, 1) per token ``index``: the first Philox word of counter (index, 0, 0, 0) over 2^32."""
    return philox4x32((index & _MASK, 0, 0, 0), (seed & _MASK, seed >> 32))[0] / 2.0**32


def probabilities(logits: npt.NDArray[Any], settings: SamplerSettings) -> npt.NDArray[np.float64]:
    """The distribution that a token is drawn from: float64 like ``logits`` [vocabulary], sum 1.

    top-k keeps the k largest logits; top-p keeps, from the largest down, the fewest tokens whose probability
    reaches top_p. Tokens that tie with the last one kept are kept too, so no order of equals matters.
    """
    values = np.asarray(logits, np.float64)
    if settings.temperature == 0:
        greedy = np.zeros_like(values)
        greedy[int(np.argmax(values))] = 1.0
        return greedy
    values = values / settings.temperature
    if 0 < settings.top_k < values.size:
        values = np.where(values >= np.partition(values, -settings.top_k)[-settings.top_k], values, -np.inf)
    masses: npt.NDArray[np.float64] = np.exp(values - values.max())
    masses /= masses.sum()
    if settings.top_p < 1:
        descending = np.sort(masses)[::-1]
        last = int(np.searchsorted(np.cumsum(descending), settings.top_p))
        masses = np.where(masses >= descending[min(last, masses.size - 1)], masses, 0.0)
        masses /= masses.sum()
    return masses


def sample(logits: npt.NDArray[Any], settings: SamplerSettings, index: int) -> int:
    """Token ``index`` of a sequence: the first id, in order of id, whose cumulated mass exceeds the uniform
    number of ``index``. Greedy takes the lowest id among the largest logits."""
    masses = probabilities(logits, settings)
    if settings.temperature == 0:
        return int(np.argmax(masses))
    cumulated = np.cumsum(masses)
    drawn = int(
        np.searchsorted(cumulated, philox_uniform(settings.seed, index) * cumulated[-1], side="right")
    )
    return min(drawn, int(np.flatnonzero(masses)[-1]))
