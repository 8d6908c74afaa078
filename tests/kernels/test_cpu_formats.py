"""The CPU's own products in every format of the layout "rows8", against float64 of the dequantised blocks."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.layouts import FORMATS
from forgec.plan.rows8 import PLANES
from forgec.plan.stages import EmbeddingParams
from tests.kernels import test_cpu_matmul, test_cpu_matvec
from tests.kernels.harness import (
    OWN_CPU,
    SCALES,
    State,
    assert_close,
    common,
    packed_weights,
    run_stage,
)

NEW = sorted(set(SCALES) & set(PLANES) & set(FORMATS))


@pytest.mark.parametrize("device", OWN_CPU)
@pytest.mark.parametrize("act", ["f32", "q8", "q16"])
@pytest.mark.parametrize("format", NEW)
def test_matvec(rng: np.random.Generator, format: str, act: str, device: str) -> None:
    rows, cols = int(rng.integers(1, 40)), 256 * int(rng.integers(1, 5))
    case = test_cpu_matvec.run_case(rng, [(format, rows)], cols, act=act, device=device)
    assert_close(case.out["out"], case.exact[0], case.magnitude[0], case.cols)


#: Float tiles decode a format by the same code on both.
MATMULS = [("f32", "cpu-own"), *(("q8", device) for device in OWN_CPU)]


@pytest.mark.parametrize(("act", "device"), MATMULS, ids="-".join)
@pytest.mark.parametrize("format", NEW)
def test_matmul(rng: np.random.Generator, format: str, act: str, device: str) -> None:
    features, cols = int(rng.integers(1, 60)), 256 * int(rng.integers(1, 4))
    out, exact, magnitude, cols = test_cpu_matmul.run_case(
        rng, [(format, features)], device=device, act=act, cols=cols
    )
    assert_close(out, exact[0], magnitude[0], cols)


@pytest.mark.parametrize("format", NEW)
def test_embedding(rng: np.random.Generator, format: str) -> None:
    vocab, cols = int(rng.integers(5, 40)), 256 * int(rng.integers(1, 4))
    weights, values = packed_weights(rng, "w0", format, vocab, cols, "rows8")
    params = EmbeddingParams(*common("cpu-own"), format, "rows8", cols, vocab, False, 1.5)
    ids = rng.integers(0, vocab, 6).astype(np.int32)
    arrays = {"tokens": ids, **weights, "out": np.full((len(ids), cols), np.nan, np.float32)}
    out = run_stage(params, arrays, state=State(rows=len(ids)), device="cpu-own")["out"]
    expected = values[ids] * 1.5
    assert_close(out, expected, np.abs(expected) + 1.5 * np.abs(values).max(), 2)
