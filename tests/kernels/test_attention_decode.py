"""Flash decoding of one token against float64: splits, lane counts, positions, groups and the counters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from forgec.plan.geometry import lanes_per_key
from forgec.plan.stages import AttentionDecodeParams
from forgec.targets import get_target
from tests.kernels.attention_cases import (
    ATTENTION_DEVICES,
    Case,
    exact_attention,
    make_case,
)
from tests.kernels.harness import DEVICES, assert_close, compile_stage, run_stage

on_devices = pytest.mark.parametrize("device", ATTENTION_DEVICES)


def decode(
    case: Case,
    device: str,
    splits: int = 4,
    lanes: int = 8,
    block: int | None = None,
    blocks: tuple[int, ...] = (1, 2, 5),
) -> np.ndarray:
    """Output [heads, head_length]; checks that the counters are zero again."""
    common = case.params(device, block)
    params = AttentionDecodeParams(*common, splits, min(lanes, common[1]))
    arrays = {
        "q": case.q,
        "k_cache": case.k,
        "v_cache": case.v,
        "partial": np.full((case.heads, splits, case.head_length + 2), np.nan, np.float32),
        "counters": np.zeros(case.kv_heads, np.uint32),
        "out": np.full_like(case.q[0], np.nan),
    }
    after = run_stage(params, arrays, state=case.state, device=device, blocks=blocks)
    assert not after["counters"].any()
    return after["out"]


def check(case: Case, device: str, **options: object) -> None:
    out = decode(case, device, **options)  # type: ignore[arg-type]
    expected, magnitude = exact_attention(case, True)
    assert_close(out, expected[0], magnitude[0], case.keys + case.head_length)


def test_common_template_on_the_cpu(rng: np.random.Generator) -> None:
    check(make_case(rng, heads=2, kv_heads=1, head_length=32, position=77), "cpu")


def test_cpu_code_is_vectorised(rng: np.random.Generator) -> None:
    """Dimensions go eight at a time: f16 is widened and multiplied in 256-bit registers, weights are, too."""
    params = AttentionDecodeParams(*make_case(rng, heads=9, kv_heads=3).params("cpu"), 4, 1)
    listing = compile_stage(params, DEVICES["cpu"], generic=False).assembly
    assert len(re.findall(r"vcvtph2ps\s.*%ymm", listing)) >= 8
    assert len(re.findall(r"vfmadd\w*ps\s.*%ymm", listing)) >= 24
    assert re.search(r"vcvttps2dq\s.*%ymm", listing), "2^x of the weights is computed one by one"


@pytest.mark.parametrize("target_name", ["gfx1100", "gfx942"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_length"), [(9, 3, 64), (32, 4, 128), (16, 1, 256), (8, 8, 80)]
)
@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
def test_planned_kernels_do_not_spill(
    target_name: str, heads: int, kv_heads: int, head_length: int, kv_dtype: str
) -> None:
    target = get_target(target_name)
    shape = (heads, kv_heads, head_length, 4096, kv_dtype, 0.1)
    lanes = lanes_per_key(head_length, target)
    params = AttentionDecodeParams(target.family, target.wave, target.block_size, *shape, 16, lanes)
    code = compile_stage(params, target_name).kernel(params.symbol)
    assert code.vgprs > 0
    assert (code.scratch_bytes, code.vgpr_spills, code.sgpr_spills) == (0, 0, 0)


class TestPositions:
    @on_devices
    def test_first_position_is_the_value(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng)
        out = decode(case, device)
        assert_close(out, np.repeat(case.v[:, 0].astype(np.float64), 3, axis=0), np.abs(out), 4)

    @on_devices
    @pytest.mark.parametrize("position", [1, 30, 31, 32, 63, 64, 127, 159])
    def test_around_the_edges_of_parts(self, rng: np.random.Generator, device: str, position: int) -> None:
        check(make_case(rng, position=position), device)

    @on_devices
    def test_many_keys(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=int(rng.integers(800, 999)), context=999), device)


class TestSplits:
    @on_devices
    @pytest.mark.parametrize("splits", [1, 3, 16])
    def test_any_number_of_splits(self, rng: np.random.Generator, device: str, splits: int) -> None:
        check(make_case(rng, position=150), device, splits=splits)

    @on_devices
    def test_more_splits_than_keys(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=2), device, splits=64)

    @on_devices
    def test_far_more_blocks_than_work(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=140), device, blocks=(1, 40))


class TestShapes:
    @pytest.mark.parametrize(
        ("head_length", "lanes"), [(32, 4), (80, 16), (80, 2), (96, 4), (128, 16), (256, 32)]
    )
    @on_devices
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int, lanes: int) -> None:
        case = make_case(rng, heads=4, kv_heads=2, head_length=head_length, position=70)
        check(case, device, lanes=lanes)

    @on_devices
    def test_head_length_of_half_pieces(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, heads=2, kv_heads=2, head_length=100, position=45), device, lanes=8)

    @on_devices
    @pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8, 16])
    def test_groups(self, rng: np.random.Generator, device: str, group: int) -> None:
        check(make_case(rng, heads=group, kv_heads=1, position=90), device)

    @on_devices
    def test_group_in_tiles_of_heads(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=14, kv_heads=2, head_length=128, position=101)
        check(case, device, lanes=8)

    @on_devices
    @pytest.mark.parametrize("lanes", [1, 4, 16])
    def test_f32_cache(self, rng: np.random.Generator, device: str, lanes: int) -> None:
        check(make_case(rng, position=99, kv_dtype="f32"), device, lanes=lanes)

    @on_devices
    def test_one_wave(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=121), device, block=64 if "gfx9" in device else 32)


class TestNumbers:
    @on_devices
    def test_large_scores(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=130, size=1e4), device)

    @on_devices
    def test_equal_keys_average_the_values(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, position=110)
        case.k[:] = case.k[:, :1]
        expected = np.repeat(case.v[:, :111].astype(np.float64).mean(1), 3, axis=0)
        magnitude = np.repeat(np.abs(case.v[:, :111].astype(np.float64)).mean(1), 3, axis=0)
        assert_close(decode(case, device), expected, magnitude * 8, 111)

    @on_devices
    def test_one_key_takes_all(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, position=100)
        case.q[:] = np.sign(case.q) * 100
        case.k[0, 57] = np.sign(case.q[0, 0]) * 10
        out = decode(case, device)
        np.testing.assert_array_equal(out[0], case.v[0, 57].astype(np.float32))
