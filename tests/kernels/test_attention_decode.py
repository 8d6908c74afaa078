"""Flash decoding of one token against float64: splits, lane counts, positions, groups and the counters."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from forgec.plan.geometry import lanes_per_key
from forgec.plan.stages import AttentionDecodeParams, KVCache
from forgec.targets import get_target
from tests.kernels.attention_cases import (
    ATTENTION_DEVICES,
    Case,
    exact_attention,
    make_case,
    quantise_row,
    with_forms,
)
from tests.kernels.harness import DEVICES, assert_close, compile_stage, run_stage

on_devices = pytest.mark.parametrize("device", ATTENTION_DEVICES)


def decode(
    case: Case,
    device: str,
    splits: int = 4,
    lanes: int = 8,
    block: int | None = None,
    blocks: int = 7,
) -> np.ndarray:
    """Output [heads, value_length]; checks that the counters are zero again.

    How the keys are split depends on the number of blocks, so that each is run by itself.
    """
    common = case.params(device, block)
    params = AttentionDecodeParams(*common, splits, min(lanes, common[1]))
    arrays = case.arrays() | {
        "partial": np.full(params.partial_floats, np.nan, np.float32),
        "counters": np.zeros(case.kv_heads, np.uint32),
        "out": np.full((case.heads, case.cache.value_length), np.nan, np.float32),
    }
    after = run_stage(params, arrays, state=case.state, device=device, blocks=(blocks,))
    assert not after["counters"].any()
    return after["out"]


def check(case: Case, device: str, **options: object) -> None:
    out = decode(case, device, **options)  # type: ignore[arg-type]
    expected, magnitude = exact_attention(case, True)
    assert_close(out, expected[0], magnitude[0], case.keys + case.cache.key_length)


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
    ("heads", "kv_heads", "head_length"), [(9, 3, 64), (64, 8, 64), (32, 4, 128), (16, 1, 256)]
)
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
def test_planned_kernels_do_not_spill(
    target_name: str, heads: int, kv_heads: int, head_length: int, kv_dtype: str
) -> None:
    target = get_target(target_name)
    cache = KVCache(kv_heads, head_length, head_length, 4096, kv_dtype)
    lanes = lanes_per_key(head_length, target)
    common = (target.family, target.wave, target.block_size)
    params = AttentionDecodeParams(*common, heads, cache, 0.1, splits=32, lanes_per_key=lanes)
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
    @pytest.mark.parametrize("position", [31, 32, 159])
    def test_around_the_edges_of_parts(self, rng: np.random.Generator, device: str, position: int) -> None:
        check(make_case(rng, position=position), device)

    @on_devices
    def test_many_keys(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=int(rng.integers(800, 999)), context=999), device, blocks=11)


class TestSplits:
    @on_devices
    @pytest.mark.parametrize("blocks", [1, 2, 5, 9, 40])
    def test_any_number_of_blocks(self, rng: np.random.Generator, device: str, blocks: int) -> None:
        """With one wave a block, so that a hundred keys are too many for one block."""
        block = 64 if "gfx9" in device else 32
        case = make_case(rng, position=int(rng.integers(900, 999)), context=999)
        check(case, device, splits=16, block=block, blocks=blocks)

    @on_devices
    def test_more_splits_than_keys(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=2), device, splits=64, blocks=200)

    @on_devices
    def test_more_parts_than_lanes(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, head_length=32, position=4095, context=4096)
        check(case, device, splits=70, blocks=80, lanes=4, block=64 if "gfx9" in device else 32)


class TestShapes:
    @pytest.mark.parametrize(("head_length", "lanes"), [(80, 16), (96, 4), (128, 16), (512, 32)])
    @on_devices
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int, lanes: int) -> None:
        case = make_case(rng, heads=4, kv_heads=2, head_length=head_length, position=70)
        check(case, device, lanes=lanes)

    @on_devices
    def test_head_length_of_half_pieces(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, heads=2, kv_heads=2, head_length=100, position=45), device, lanes=8)

    @on_devices
    @pytest.mark.parametrize("group", [1, 7, 16])
    def test_groups(self, rng: np.random.Generator, device: str, group: int) -> None:
        check(make_case(rng, heads=group, kv_heads=1, position=90), device)

    @on_devices
    def test_group_in_tiles_of_heads(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=14, kv_heads=2, head_length=128, position=101)
        check(case, device, lanes=8)

    @on_devices
    @pytest.mark.parametrize("lanes", [1, 16])
    def test_f32_cache(self, rng: np.random.Generator, device: str, lanes: int) -> None:
        check(make_case(rng, position=99, kv_dtype="f32"), device, lanes=lanes)

    @on_devices
    def test_one_wave(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=121), device, block=64 if "gfx9" in device else 32)


FORMS: dict[str, dict[str, object]] = {
    "window": {"window": 37},
    "window in a ring": {"window": 50, "ring": 128, "position": 300},
    "soft-cap": {"softcap": 5.0, "size": 8.0},
    "slopes of six heads": {"alibi": 8.0},
    "sinks": {"sinks": True},
    "short values": {"head_length": 96, "value_length": 64},
    "values in keys": {"head_length": 96, "value_length": 64, "v_from_k": True, "kv_heads": 1},
    "everything": {"head_length": 96, "value_length": 32, "kv_dtype": "q8_0", "window": 70, "ring": 128,
                   "position": 333, "softcap": 9.0, "alibi": 4.0, "sinks": True},
}  # fmt: skip


class TestForms:
    @pytest.mark.parametrize(("device", "form"), with_forms(FORMS, ("values in keys", "everything")))
    def test_one_part(self, rng: np.random.Generator, device: str, form: str) -> None:
        check(make_case(rng, **{"position": 120} | FORMS[form]), device)  # type: ignore[arg-type]

    @on_devices
    @pytest.mark.parametrize("form", ["window in a ring", "values in keys", "everything"])
    def test_several_parts(self, rng: np.random.Generator, device: str, form: str) -> None:
        wide = {"ring": 1024, "window": 900, "position": 1999} if "ring" in FORMS[form] else {"position": 950}
        case = make_case(rng, **{"context": 1024} | FORMS[form] | wide)  # type: ignore[arg-type]
        check(case, device, splits=16, block=64 if "gfx9" in device else 32, blocks=40)

    @on_devices
    def test_quantised_rows(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, head_length=128, position=90, kv_dtype="q8_0"), device)

    @on_devices
    @pytest.mark.parametrize("ring", [0, 64])
    def test_own_rows_are_appended(self, rng: np.random.Generator, device: str, ring: int) -> None:
        """The step's k and v come in float32; the cache lacks them and has them afterwards."""
        case = make_case(rng, position=100, kv_dtype="q8_0", ring=ring, **({"window": 40} if ring else {}))
        at = case.position % ring if ring else case.position
        k_new, v_new = rng.standard_normal((2, case.kv_heads, 64)).astype(np.float32)
        before, after, exact = [], [], []
        for rows, cached, new in ((case.k, case.k_cache, k_new), (case.v, case.v_cache, v_new)):
            scales, quants = quantise_row(new)
            exact.append(rows.copy())
            exact[-1][:, -1] = (
                scales[..., None].astype(np.float64) * quants.reshape(*scales.shape, 32)
            ).reshape(new.shape)
            count = case.kv_heads * case.cache.positions * 64
            for states, (s, q) in ((before, (np.float16(7), 9)), (after, (scales, quants))):
                array = cached.copy()
                array[:count].view(np.int8).reshape(case.kv_heads, -1, 64)[:, at] = q
                array[count:].view(np.float16).reshape(case.kv_heads, -1, 2)[:, at] = s
                states.append(array)
        case = replace(case, k=exact[0], v=exact[1], k_cache=before[0], v_cache=before[1])
        common = case.params(device)
        params = AttentionDecodeParams(*common, 4, min(8, common[1]), fresh=True)
        arrays = case.arrays() | {
            "k_new": k_new,
            "v_new": v_new,
            "partial": np.full(params.partial_floats, np.nan, np.float32),
            "counters": np.zeros(case.kv_heads, np.uint32),
            "out": np.full((case.heads, 64), np.nan, np.float32),
        }
        found = run_stage(params, arrays, state=case.state, device=device, blocks=(3,))
        expected, magnitude = exact_attention(case, True)
        assert_close(found["out"], expected[0], magnitude[0], case.keys + 64)
        np.testing.assert_array_equal(found["k_cache"], after[0])
        np.testing.assert_array_equal(found["v_cache"], after[1])


class TestNumbers:
    @on_devices
    def test_large_scores(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, position=130, size=1e4), device)

    @on_devices
    def test_equal_keys_average_the_values(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, position=110)
        case.k_cache[:] = case.k_cache[:, :1]
        expected = np.repeat(case.v[:, :111].mean(1), 3, axis=0)
        magnitude = np.repeat(np.abs(case.v[:, :111]).mean(1), 3, axis=0)
        assert_close(decode(case, device), expected, magnitude * 8, 111)

    @on_devices
    def test_one_key_takes_all(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, position=100)
        case.q[:] = np.sign(case.q) * 100
        case.k_cache[0, 57] = np.sign(case.q[0, 0]) * 10
        out = decode(case, device)
        np.testing.assert_array_equal(out[0], case.v[0, 57].astype(np.float32))
