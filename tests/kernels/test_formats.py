"""Every quantisation format in every stage that reads weights, against float64 of its dequantised blocks.

A kernel takes three formats at once, as a fused product of a mixed file does: compiling is what tests cost.
"""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.layouts import FORMATS
from tests.kernels import test_embedding as embedding
from tests.kernels import test_matmul as matmul
from tests.kernels import test_matvec as matvec
from tests.kernels.harness import EVERY_DEVICE, SCALES, assert_close

#: Formats that have no tests of their own elsewhere, three to a kernel.
NAMES = sorted(SCALES)
TRIPLES = [NAMES[i : i + 3] for i in range(0, len(NAMES), 3)]


def test_every_format_is_tested() -> None:
    assert set(NAMES) | set(matvec.FORMATS) == set(FORMATS)


def segments(rng: np.random.Generator, formats: list[str]) -> list[tuple[str, int]]:
    return [(name, int(rng.integers(3, 14))) for name in formats]


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8", "q16"])
@pytest.mark.parametrize("formats", TRIPLES, ids="-".join)
def test_matvec(rng: np.random.Generator, formats: list[str], act: str, device: str) -> None:
    # Lanes that share a block, that take whole blocks, and that find less than a slice for each.
    lanes, cols = (int(n) for n in rng.choice([(4, 256), (8, 256), (8, 512), (32, 512)]))
    case = matvec.run_case(
        rng, segments(rng, formats), cols, act=act, lanes=lanes, rows_per_group=1, device=device, block=64
    )
    assert_close(case.out["out"], np.concatenate(case.exact), np.concatenate(case.magnitude), cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("act", ["f32", "q8"])
@pytest.mark.parametrize("formats", TRIPLES, ids="-".join)
def test_matmul(rng: np.random.Generator, formats: list[str], act: str, device: str) -> None:
    cols = 256 * int(rng.integers(1, 3))
    out, exact, magnitude, _ = matmul.run_case(rng, segments(rng, formats), device=device, act=act, cols=cols)
    assert_close(out, np.concatenate(exact, 1), np.concatenate(magnitude, 1), cols)


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("format", NAMES)
def test_embedding_rows(rng: np.random.Generator, format: str, device: str) -> None:
    tokens = rng.integers(0, 1000, 5)
    out, expected = embedding.embed(rng, format, device, tokens, decode=False, scale=1.0, cols=512)
    assert_close(out, expected, np.abs(expected) + np.abs(expected).max(), 2)
