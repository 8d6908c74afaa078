"""Decode attention on matrix units against float64.

The stage belongs to NVIDIA. On an emulated gfx1100, which has waves of the same width, it runs with the
matrix product written out from the layout that the PTX ISA gives for mma.m16n8k16, so that everything else of
it is executed everywhere; on a GPU it runs as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from forgec.codegen import render
from forgec.plan.geometry import matrix_decode
from forgec.plan.stages import AttentionDecodeParams, KVCache
from forgec.targets import get_target
from tests.kernels.attention_cases import Case, exact_attention, make_case
from tests.kernels.harness import assert_close, compile_stage, run_stage

#: The product of nvptx's prelude, value by value from the lanes that hold them.
PRODUCT = """
DEVICE u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
DEVICE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  for (int half_of = 0; half_of < 2; ++half_of) {
    for (int s = 0; s < 4; ++s) {
      for (int row = 0; row < 2; ++row) {
        const u32 left = wave_shuffle(a[row + 2 * half_of], lane() / 4 * 4 + s);
        for (int col = 0; col < 2; ++col) {
          const u32 right = wave_shuffle(half_of ? b1 : b0, (lane() % 4 * 2 + col) * 4 + s);
          c[2 * row + col] += low_f16(left) * low_f16(right) + high_f16(left) * high_f16(right);
        }
      }
    }
  }
}
"""
DEVICES = ["emulated-gfx1100", pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)


@dataclass(frozen=True)
class WrittenOut(AttentionDecodeParams):
    """The stage for a family without the product."""

    @property
    def template_text(self) -> str:
        path = render.templates_dir() / "stages" / f"{self.stage}.hip.j2"
        first = '{% include "lib/kv.hip.j2" %}'
        return path.read_text(encoding="utf-8").replace(first, PRODUCT + first, 1)


def check(case: Case, device: str, *, splits: int = 16, blocks: int = 7, block: int | None = None) -> None:
    kind = AttentionDecodeParams if device == "cuda" else WrittenOut
    params = kind(*case.params(device, block), splits, matrix=True)
    arrays = case.arrays() | {
        "partial": np.full(params.partial_floats, np.nan, np.float32),
        "counters": np.zeros(case.kv_heads, np.uint32),
        "out": np.full((case.heads, case.cache.value_length), np.nan, np.float32),
    }
    after = run_stage(params, arrays, state=case.state, device=device, blocks=(blocks,))
    assert not after["counters"].any()
    expected, magnitude = exact_attention(case, True)
    assert_close(after["out"], expected[0], magnitude[0], case.keys + case.cache.key_length)


@on_devices
@pytest.mark.parametrize(
    ("heads", "kv_heads", "lengths"), [(9, 3, (64, 64)), (8, 2, (128, 128)), (10, 1, (128, 64))]
)
def test_shapes(
    rng: np.random.Generator, device: str, heads: int, kv_heads: int, lengths: tuple[int, int]
) -> None:
    """Groups of three, four and ten heads; the last goes in two tiles."""
    position = int(rng.integers(1, 160))
    case = make_case(
        rng,
        heads=heads,
        kv_heads=kv_heads,
        head_length=lengths[0],
        value_length=lengths[1],
        position=position,
    )
    check(case, device)


@on_devices
@pytest.mark.parametrize("blocks", [1, 20])
def test_parts(rng: np.random.Generator, device: str, blocks: int) -> None:
    case = make_case(rng, position=int(rng.integers(700, 800)), context=800)
    check(case, device, block=64, blocks=blocks)


@on_devices
def test_first_position(rng: np.random.Generator, device: str) -> None:
    check(make_case(rng), device)


@on_devices
def test_large_scores(rng: np.random.Generator, device: str) -> None:
    check(make_case(rng, position=100, size=1e3), device)


@on_devices
def test_window_in_a_ring_with_everything(rng: np.random.Generator, device: str) -> None:
    case = make_case(
        rng, position=333, window=70, ring=128, softcap=9.0, alibi=4.0, sinks=True, head_length=64
    )
    check(case, device)


def test_where_it_is_used() -> None:
    cache = KVCache(8, 128, 128, 512, "f16")
    assert matrix_decode(cache, get_target("sm_90"))
    assert not matrix_decode(cache, get_target("gfx1100"))
    for other in ({"dtype": "q8_0"}, {"key_length": 256}, {"v_from_k": True}, {"value_length": 96}):
        assert not matrix_decode(replace(cache, **other), get_target("sm_90"))  # type: ignore[arg-type]


def test_products_are_on_the_matrix_unit() -> None:
    target = get_target("sm_90")
    cache = KVCache(8, 128, 128, 512, "f16")
    common = (target.family, target.wave, target.block_size)
    params = AttentionDecodeParams(*common, 32, cache, 0.1, splits=4, matrix=True)
    text = compile_stage(params, "sm_90").data.decode()
    assert text.count("mma.sync.aligned.m16n8k16") == 32  # 16 keys: 8 + 8 for scores, 16 for values
    assert ".local" not in text
