"""The sampler stage against its NumPy twin, token for token: ties, NaN, infinities, both cuts, long rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forgec.plan.stages import SampleParams
from forgec.reference.sampling import SamplerSettings, sample
from tests.kernels.harness import EVERY_DEVICE, State, common, run_stage

on_devices = pytest.mark.parametrize("device", EVERY_DEVICE)
RING = 8


def draw(
    logits: np.ndarray, device: str, state: State, block: int | None = None, blocks: tuple[int, ...] = (1, 3)
) -> tuple[int, State, np.ndarray]:
    """(token, state, ring) after one launch."""
    params = SampleParams(*common(device, block), vocab=logits.size)
    arrays = {
        "logits": logits.astype(np.float32),
        "ring": np.full(RING, -1, np.int32),
        "state": replace(state, ring_mask=RING - 1).to_array(),
    }
    after = run_stage(params, arrays, device=device, blocks=blocks)
    new = State.from_array(after["state"])
    return new.token, new, after["ring"]


def check(
    logits: np.ndarray, device: str, settings: SamplerSettings, step: int = 0, block: int | None = None
) -> int:
    state = State(
        step=step,
        seed_lo=settings.seed & 0xFFFFFFFF,
        seed_hi=settings.seed >> 32,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    token = draw(logits, device, state, block)[0]
    assert token == sample(logits.astype(np.float32), settings, step), f"{settings}, step {step}"
    return token


def random_settings(rng: np.random.Generator, top_k: int = 0, top_p: float = 1.0) -> SamplerSettings:
    return SamplerSettings(float(rng.uniform(0.3, 2)), top_k, top_p, int(rng.integers(0, 1 << 63)) * 2 + 1)


class TestGreedy:
    @on_devices
    @pytest.mark.parametrize("vocab", [1, 2, 31, 257, 5003])
    def test_largest_logit(self, rng: np.random.Generator, device: str, vocab: int) -> None:
        logits = rng.standard_normal(vocab)
        assert check(logits, device, SamplerSettings()) == int(np.argmax(logits))

    @on_devices
    def test_lowest_index_among_equals(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.integers(0, 4, 3001).astype(np.float32)
        assert check(logits, device, SamplerSettings()) == int(np.flatnonzero(logits == 3)[0])

    @on_devices
    def test_both_zeros_are_equal(self, device: str) -> None:
        logits = np.full(700, -1.0)
        logits[[123, 456]] = [-0.0, 0.0]
        assert check(logits, device, SamplerSettings()) == 123

    @on_devices
    def test_nan_loses(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(997)
        logits[rng.random(997) < 0.5] = np.nan
        logits[0], logits[601] = -np.nan, 1e30
        assert check(logits, device, SamplerSettings()) == 601

    @on_devices
    def test_infinities(self, device: str) -> None:
        logits = np.full(300, -np.inf)
        assert check(logits, device, SamplerSettings()) == 0
        logits[[70, 200]] = np.inf
        assert check(logits, device, SamplerSettings()) == 70

    @on_devices
    def test_all_nan_is_token_zero(self, device: str) -> None:
        for temperature in (0.0, 1.0):
            assert check(np.full(129, np.nan), device, SamplerSettings(temperature)) == 0

    @on_devices
    def test_last_of_a_long_vocabulary(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(262_144)
        logits[-1] = 99
        assert check(logits, device, SamplerSettings()) == 262_143


class TestDraws:
    @on_devices
    def test_temperature_alone(self, rng: np.random.Generator, device: str) -> None:
        logits, settings = rng.standard_normal(1003), random_settings(rng)
        tokens = {check(logits, device, settings, step) for step in range(12)}
        assert len(tokens) > 3

    @on_devices
    @pytest.mark.parametrize("top_k", [1, 2, 40, 1002, 1003, 5000])
    def test_top_k(self, rng: np.random.Generator, device: str, top_k: int) -> None:
        logits = rng.standard_normal(1003)
        for step in range(4):
            token = check(logits, device, random_settings(rng, top_k), step)
            assert np.count_nonzero(logits > logits[token]) < top_k

    @on_devices
    @pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999999])
    def test_top_p(self, rng: np.random.Generator, device: str, top_p: float) -> None:
        logits = rng.standard_normal(1003) * 2
        for step in range(4):
            check(logits, device, random_settings(rng, top_p=top_p), step)

    @on_devices
    def test_top_k_then_top_p(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(1003)
        for step in range(8):
            top_k, top_p = int(rng.integers(1, 80)), float(rng.uniform(0.05, 1))
            check(logits, device, random_settings(rng, top_k, top_p), step)

    @on_devices
    def test_ties_at_both_edges(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.integers(0, 3, 1003).astype(np.float32)  # about 334 tokens at each level
        for step in range(8):
            top_k, top_p = int(rng.integers(1, 700)), float(rng.uniform(0.05, 1))
            check(logits, device, random_settings(rng, top_k, top_p), step)

    @on_devices
    def test_equal_logits(self, rng: np.random.Generator, device: str) -> None:
        for step in range(4):
            token = check(np.full(1003, -7.5), device, random_settings(rng, 100, 0.5), step)
            assert token < 50

    @on_devices
    def test_nan_and_infinite_logits(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(1003)
        logits[rng.random(1003) < 0.3] = np.nan
        logits[rng.random(1003) < 0.3] = -np.inf
        for step in range(4):
            token = check(logits, device, random_settings(rng, 900, 0.95), step)
            assert np.isfinite(logits[token])
        logits[[5, 600]] = np.inf
        assert check(logits, device, random_settings(rng)) in (5, 600)

    @on_devices
    def test_large_logits(self, rng: np.random.Generator, device: str) -> None:
        check(rng.uniform(-1e4, 1e4, 1003), device, random_settings(rng))

    @on_devices
    def test_extreme_temperatures(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(1003)
        assert check(logits, device, SamplerSettings(1e-40)) == int(np.argmax(logits))
        check(logits, device, SamplerSettings(1e30, seed=7))

    @on_devices
    def test_long_vocabulary(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(128_257) * 3
        check(logits, device, random_settings(rng, 50, 0.9))
        check(logits, device, random_settings(rng))

    @on_devices
    @pytest.mark.parametrize("block", [64, 192])
    def test_number_of_threads_does_not_matter(
        self, rng: np.random.Generator, device: str, block: int
    ) -> None:
        logits, settings = rng.standard_normal(1003), random_settings(rng, 200, 0.8)
        check(logits, device, settings, block=block)


class TestState:
    @on_devices
    def test_advances(self, rng: np.random.Generator, device: str) -> None:
        logits = rng.standard_normal(1003)
        before = State(rows=17, position=40, row=16, token=5, step=3, seed_lo=11, seed_hi=12)
        token, state, ring = draw(logits, device, before)
        assert token == int(np.argmax(logits))
        expected = replace(before, rows=1, position=57, row=0, token=token, step=4, ring_mask=RING - 1)
        assert state == expected
        assert ring[3] == token
        assert (np.delete(ring, 3) == -1).all()

    @on_devices
    def test_ring_wraps(self, device: str) -> None:
        _, state, ring = draw(np.arange(9.0), device, State(step=2 * RING + 5))
        assert ring[5] == 8
        assert state.step == 2 * RING + 6

    @on_devices
    def test_draw_depends_on_step_and_seed(self, rng: np.random.Generator, device: str) -> None:
        logits = np.zeros(1003)
        state = State(temperature=1.0, step=9, seed_lo=3, seed_hi=4)
        changed = [state, replace(state, step=10), replace(state, seed_lo=4), replace(state, seed_hi=3)]
        assert len({draw(logits, device, s)[0] for s in changed}) > 1
        assert draw(logits, device, state)[0] == draw(logits, device, state)[0]
