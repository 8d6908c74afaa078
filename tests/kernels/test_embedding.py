"""The embedding stage: rows of every format, for a prompt and for one decoded token."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.stages import EmbeddingParams
from tests.kernels.harness import EVERY_DEVICE, State, assert_close, common, packed_weights, run_stage

FORMATS = ["q4_0", "q4_1", "q8_0", "f16", "bf16", "f32"]


def embed(
    rng: np.random.Generator,
    format: str,
    device: str,
    tokens: np.ndarray,
    *,
    decode: bool,
    scale: float,
    cols: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(out [rows, cols] as the kernel left it, all embeddings [vocab, cols] in float64)."""
    vocab, cols = int(rng.integers(5, 40)), cols or 32 * int(rng.integers(1, 12))
    planes, values = packed_weights(rng, "w0", format, vocab, cols)
    params = EmbeddingParams(*common(device), format, "rows", cols, vocab, decode, scale)
    out = np.full((len(tokens), cols), np.nan, np.float32)
    ids = (tokens % vocab).astype(np.int32)
    state = State(rows=len(ids), token=int(ids[-1]))
    result = run_stage(params, {"tokens": ids, **planes, "out": out}, state=state, device=device)
    return result["out"], values[ids] * np.float64(np.float32(scale))


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("format", FORMATS)
def test_prompt_rows(rng: np.random.Generator, format: str, device: str) -> None:
    tokens = rng.integers(0, 1000, int(rng.integers(1, 9)))
    scale = float(rng.choice([1.0, 22.5]))
    out, expected = embed(rng, format, device, tokens, decode=False, scale=scale)
    assert_close(out, expected, np.abs(expected) + 0.01 * np.abs(expected).max(), 2)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_decode_takes_the_last_token_and_one_row(rng: np.random.Generator, device: str) -> None:
    out, expected = embed(rng, "q8_0", device, rng.integers(0, 1000, 3), decode=True, scale=1.0)
    assert_close(out[0], expected[-1], np.abs(expected[-1]) + 0.01 * np.abs(expected).max(), 2)
    assert np.isnan(out[1:]).all(), "a decode step wrote more than one row"


def test_tokens_outside_of_the_vocabulary_read_the_nearest_row(rng: np.random.Generator) -> None:
    planes, values = packed_weights(rng, "w0", "f32", 7, 32)
    params = EmbeddingParams(*common("cpu"), "f32", "rows", 32, 7, False)
    ids = np.array([-3, 7, 2**31 - 1], np.int32)
    out = np.zeros((3, 32), np.float32)
    result = run_stage(params, {"tokens": ids, **planes, "out": out}, state=State(rows=3))
    assert np.array_equal(result["out"], values[[0, 6, 6]].astype(np.float32))
