"""FlashAttention of prompt chunks against float64: causal and full, head lengths, ragged tiles, chunks."""

from __future__ import annotations

import numpy as np
import pytest

from forgec.plan.geometry import attention_tile
from forgec.plan.stages import AttentionPrefillParams, KVCache
from forgec.plan.tuning import lookup
from forgec.targets import get_target
from tests.kernels.attention_cases import (
    ATTENTION_DEVICES,
    Case,
    exact_attention,
    make_case,
    with_forms,
)
from tests.kernels.harness import assert_close, compile_stage, run_stage

on_devices = pytest.mark.parametrize("device", ATTENTION_DEVICES)


def flash(
    case: Case,
    device: str,
    causal: bool,
    tiles: tuple[int, int] = (32, 32),
    block: int | None = None,
    blocks: tuple[int, ...] = (1, 3),
) -> np.ndarray:
    queries, keys = tiles
    params = AttentionPrefillParams(
        *case.params(device, block), causal=causal, tile_queries=queries, tile_keys=keys
    )
    out = np.full((case.rows, case.heads, case.cache.value_length), np.nan, np.float32)
    arrays = case.arrays() | {"out": out}
    return run_stage(params, arrays, state=case.state, device=device, blocks=blocks)["out"]


def check(case: Case, device: str, causal: bool, **options: object) -> None:
    out = flash(case, device, causal, **options)  # type: ignore[arg-type]
    expected, magnitude = exact_attention(case, causal)
    assert_close(out, expected, magnitude, case.keys + case.cache.key_length)


@pytest.mark.parametrize("head_length", [64, 36, 100])
@pytest.mark.parametrize("tiles", [(32, 64), (16, 48)])
def test_widest_vectors_of_this_machine(
    rng: np.random.Generator, head_length: int, tiles: tuple[int, int]
) -> None:
    rows, position = (int(n) for n in rng.integers(1, 80, 2))
    case = make_case(rng, rows=rows, position=position, head_length=head_length)
    check(case, "cpu-native", causal=bool(rng.integers(0, 2)), tiles=tiles)


def test_common_template_on_the_cpu(rng: np.random.Generator) -> None:
    check(make_case(rng, rows=11, position=7), "cpu", causal=True, tiles=(4, 8))


@pytest.mark.parametrize("target_name", ["gfx1100", "gfx942", "sm_90"])
@pytest.mark.parametrize(("heads", "head_length"), [(9, 64), (64, 128), (8, 256), (4, 576)])
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
def test_planned_tiles_fit_into_lds_without_spills(
    target_name: str, heads: int, head_length: int, kv_dtype: str
) -> None:
    target = get_target(target_name)
    tuning = lookup("attention", kv_dtype, target)
    cache = KVCache(heads // 4 or 1, head_length, min(head_length, 512), 512, kv_dtype)
    held = 2 if kv_dtype == "f16" else 4
    queries, keys = attention_tile(heads, (head_length, cache.value_length), held, 128, tuning, target)
    common = (target.family, target.wave, target.block_size)
    params = AttentionPrefillParams(
        *common, heads, cache, 0.1, causal=True, tile_queries=queries, tile_keys=keys
    )
    code = compile_stage(params, target_name).kernel(params.symbol)
    assert 0 < code.lds_bytes <= 48 << 10
    assert code.scratch_bytes == 0


class TestNonCausal:
    @on_devices
    def test_one_tile(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, rows=32), device, causal=False)

    @on_devices
    def test_rows_and_keys_that_fill_no_tile(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, rows=int(rng.integers(33, 64)), position=int(rng.integers(1, 31)))
        check(case, device, causal=False)

    @on_devices
    @pytest.mark.parametrize("head_length", [32, 80, 96, 100])
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int) -> None:
        case = make_case(rng, heads=2, kv_heads=2, head_length=head_length, rows=19, position=20)
        check(case, device, causal=False)

    @on_devices
    def test_f32_cache(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, rows=21, position=14, kv_dtype="f32"), device, causal=False)

    @on_devices
    def test_large_scores_stay_finite(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=3, kv_heads=1, rows=17, position=40, size=1e4)
        check(case, device, causal=False)

    @on_devices
    def test_first_row_sees_later_keys(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=1, rows=40)
        full = flash(case, device, causal=False)
        expected = exact_attention(case, True)[0]
        assert np.abs(full[0] - expected[0]).max() > 0.1  # causal, row 0 would be V[0] alone
        assert_close(full[-1:], expected[-1:], exact_attention(case, True)[1][-1:], case.keys + 64)


FORMS: dict[str, dict[str, object]] = {
    "window": {"window": 13},
    "window in a ring": {"window": 30, "ring": 128, "position": 211},
    "soft-cap": {"softcap": 5.0, "size": 8.0},
    "slopes of six heads": {"alibi": 8.0},
    "sinks": {"sinks": True},
    "short values": {"head_length": 96, "value_length": 64},
    "values in keys": {"head_length": 96, "value_length": 64, "v_from_k": True, "kv_heads": 1},
    "quantised": {"kv_dtype": "q8_0"},
    "everything": {"head_length": 96, "value_length": 32, "kv_dtype": "q8_0", "window": 70, "ring": 128,
                   "position": 333, "softcap": 9.0, "alibi": 4.0, "sinks": True},
}  # fmt: skip


@pytest.mark.parametrize(("device", "form"), with_forms(FORMS, ("values in keys", "everything")))
def test_forms(rng: np.random.Generator, device: str, form: str) -> None:
    case = make_case(rng, **{"rows": 37, "position": 19} | FORMS[form])  # type: ignore[arg-type]
    check(case, device, causal=form != "sinks")


class TestCausal:
    @on_devices
    def test_one_tile(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, rows=32), device, causal=True)

    @on_devices
    def test_rows_that_fill_no_tile(self, rng: np.random.Generator, device: str) -> None:
        check(make_case(rng, rows=int(rng.integers(65, 80))), device, causal=True)

    @on_devices
    def test_later_chunk_of_a_prompt(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, rows=int(rng.integers(1, 40)), position=int(rng.integers(33, 90)))
        check(case, device, causal=True)

    @on_devices
    def test_chunks_agree_with_the_whole_prompt(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=3, kv_heads=3, rows=50, kv_dtype="f32")
        whole, magnitude = exact_attention(case, True)
        for first, rows in ((0, 23), (23, 27)):
            chunk = Case(**{**vars(case), "rows": rows, "position": first, "q": case.q[first : first + rows]})
            out = flash(chunk, device, causal=True)
            assert_close(out, whole[first : first + rows], magnitude[first : first + rows], 114)

    @on_devices
    def test_single_row_at_position_zero_is_the_value(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng)
        out = flash(case, device, causal=True)
        assert_close(out[0], np.repeat(case.v[:, 0], 3, axis=0), np.abs(out[0]), 4)

    @on_devices
    @pytest.mark.parametrize("head_length", [48, 128, 256])
    def test_head_lengths(self, rng: np.random.Generator, device: str, head_length: int) -> None:
        tiles = (16, 16) if head_length == 256 else (32, 32)
        case = make_case(rng, heads=5, kv_heads=1, head_length=head_length, rows=18, position=9)
        check(case, device, causal=True, tiles=tiles)

    @on_devices
    @pytest.mark.parametrize("tiles", [(48, 16), (16, 64), (16, 128)])
    def test_tiles_of_other_shapes(
        self, rng: np.random.Generator, device: str, tiles: tuple[int, int]
    ) -> None:
        case = make_case(rng, heads=8, kv_heads=1, rows=37, position=110)
        check(case, device, causal=True, tiles=tiles)

    @on_devices
    def test_block_of_two_waves(self, rng: np.random.Generator, device: str) -> None:
        block = 128 if "gfx9" in device else 64
        check(make_case(rng, rows=35, position=6), device, causal=True, block=block)

    @on_devices
    def test_more_blocks_than_work(self, rng: np.random.Generator, device: str) -> None:
        case = make_case(rng, heads=2, kv_heads=2, rows=5)
        check(case, device, causal=True, blocks=(1, 7))
