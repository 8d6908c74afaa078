"""The sampler's NumPy twin against published vectors, a plain float64 sampler, and its own distribution."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.errors import UsageError
from forgec.reference.sampling import (
    SamplerSettings,
    masses,
    philox4x32,
    philox_u64,
    philox_uniform,
    probabilities,
    sample,
    surviving,
)


def plain_probabilities(logits: np.ndarray, settings: SamplerSettings) -> np.ndarray:
    """Temperature, top-k, top-p by sorting in float64; ties by index."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if 0 < settings.top_k < len(order):
        order = order[: settings.top_k]
    p = np.exp((logits[order] - logits.max()) / settings.temperature)
    p /= p.sum()
    if settings.top_p < 1:
        kept = 0
        total = 0.0
        while total < settings.top_p and kept < len(p):
            total += p[kept]
            kept += 1
        order, p = order[:kept], p[:kept] / p[:kept].sum()
    out = np.zeros(len(logits))
    out[order] = p
    return out


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds)."""
    assert philox4x32(counter, key) == words


def test_random_bits_are_words_zero_and_one() -> None:
    assert philox_u64(0, 0) == 0xE169C58D6627E8D5
    assert philox_uniform(0, 0) == pytest.approx(0xE169C58D / 2**32, abs=2**-31)


def test_masses_are_exponentials() -> None:
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal(4000) * 6).astype(np.float32)
    for temperature in (0.25, 1.0, 3.0):
        exact = np.exp((logits.astype(np.float64) - logits.max()) / temperature) * 2.0**40
        found = masses(logits, temperature).astype(np.float64)
        # f32 rounds the exponent (up to 41) and the fixed point cuts below one unit.
        assert (np.abs(found - exact) <= exact * 41 * 2.0**-23 + 1).all()


def test_masses_fall_with_the_logits() -> None:
    logits = np.linspace(-31, 0, 200_001, dtype=np.float32)
    found = masses(logits, 1.0)
    assert (np.diff(found.astype(np.int64)) >= 0).all()
    assert found[-1] == 1 << 40
    assert found[0] == 0


def test_largest_logits_weigh_one_and_nan_nothing() -> None:
    logits = np.array([np.nan, np.inf, 3.0, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(masses(logits, 1.0), np.array([0, 1 << 40, 0, 1 << 40, 0], np.uint64))


@pytest.mark.parametrize("top_k", [0, 1, 7, 64, 299])
@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9, 1.0])
def test_distribution_agrees_with_sorting_in_float64(top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(top_k * 100 + int(top_p * 10))
    for temperature in (0.5, 1.0, 1.7):
        logits = (rng.standard_normal(300) * 2).astype(np.float32)
        settings = SamplerSettings(temperature, top_k, top_p)
        expected = plain_probabilities(logits.astype(np.float64), settings)
        np.testing.assert_allclose(probabilities(logits, settings), expected, rtol=1e-5, atol=1e-9)


def test_ties_keep_the_lower_ids() -> None:
    logits = np.array([1, 2, 2, 1, 2, 2], np.float32)
    kept = surviving(logits, SamplerSettings(1.0, top_k=3))
    np.testing.assert_array_equal(np.flatnonzero(kept), [1, 2, 4])
    kept = surviving(np.zeros(10, np.float32), SamplerSettings(1.0, top_p=0.35))
    np.testing.assert_array_equal(np.flatnonzero(kept), [0, 1, 2, 3])  # the fourth crosses 0.35


def test_top_p_reaches_exactly() -> None:
    """Four equal tokens: 0.5 is reached by two, not by three."""
    kept = surviving(np.zeros(4, np.float32), SamplerSettings(1.0, top_p=0.5))
    assert np.count_nonzero(kept) == 2


def test_top_p_counts_what_top_k_left() -> None:
    """Of 100 equal tokens top-k leaves 10, and half of their weight is 5."""
    kept = surviving(np.zeros(100, np.float32), SamplerSettings(1.0, top_k=10, top_p=0.5))
    assert np.count_nonzero(kept) == 5


def test_greedy() -> None:
    assert sample(np.array([1.0, 5.0, 5.0]), SamplerSettings(), 0) == 1
    assert sample(np.array([np.nan, -np.inf, -3.0]), SamplerSettings(), 0) == 2
    assert sample(np.full(3, np.nan), SamplerSettings(), 0) == 0
    assert sample(np.full(3, np.nan), SamplerSettings(1.0), 0) == 0


def test_draws_follow_the_distribution() -> None:
    """A chi-square test with a fixed seed, so that it cannot fail by chance."""
    logits = np.array([2.0, 1.5, 1.0, 0.0, -0.5, -4.0, 0.7], np.float32)
    settings = SamplerSettings(1.3, top_k=6, top_p=0.97, seed=2026)
    expected = plain_probabilities(logits.astype(np.float64), settings)
    count = 4000
    found = np.bincount([sample(logits, settings, i) for i in range(count)], minlength=7)
    assert (found[expected == 0] == 0).all()
    alive = expected > 0
    chi2 = (((found - count * expected) ** 2)[alive] / (count * expected)[alive]).sum()
    assert chi2 < 20.5  # 99.9 % of chi-square with 5 degrees of freedom


def test_consecutive_steps_are_independent() -> None:
    settings = SamplerSettings(1.0, seed=5)
    tokens = np.array([sample(np.zeros(2, np.float32), settings, i) for i in range(2000)])
    assert abs(tokens.mean() - 0.5) < 0.04
    assert abs((tokens[1:] == tokens[:-1]).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    "values", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"seed": 1 << 64}, {"seed": -1}]
)
def test_settings_that_cannot_be_meant(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} is .*; expected"):
        SamplerSettings(**values)  # type: ignore[arg-type]
