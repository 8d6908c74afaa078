"""Every quantisation format in every stage that reads weights, against float64 of its dequantised blocks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels import test_embedding as embedding
from tests.kernels import test_matmul as matmul
from tests.kernels import test_matvec as matvec
from tests.kernels.harness import EVERY_DEVICE, SCALES, assert_close

FORMATS = sorted(SCALES)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8"])
@pytest.mark.parametrize("format", FORMATS)
def test_matvec(rng: np.random.Generator, format: str, act: str, device: str) -> None:
    lanes = int(rng.choice([4, 8, 32]))
    case = matvec.run_case(
        rng,
        [(format, int(rng.integers(3, 14)))],
        256 * int(rng.integers(1, 4)),
        act=act,
        lanes=lanes,
        device=device,
    )
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8"])
@pytest.mark.parametrize("format", FORMATS)
def test_matmul(rng: np.random.Generator, format: str, act: str, device: str) -> None:
    features, cols = int(rng.integers(3, 14)), 256 * int(rng.integers(1, 3))
    out, exact, magnitude, cols = matmul.run_case(
        rng, [(format, features)], device=device, act=act, cols=cols
    )
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("format", FORMATS)
def test_embedding_rows(rng: np.random.Generator, format: str, device: str) -> None:
    out, expected = embedding.embed(
        rng, format, device, rng.integers(0, 1000, 5), decode=False, scale=1.0, cols=512
    )
    assert_close(out, expected, np.abs(expected) + np.abs(expected).max(), 2)
