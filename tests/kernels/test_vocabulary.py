"""The device vocabulary itself: collectives over every group width, dot4, exp2, conversions, atomics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from forgec.plan.stages import Arg, StageParams
from tests.kernels.harness import EVERY_DEVICE, common, run_stage

HEAD = '{% include "prelude/" ~ k.family ~ ".hip.j2" %}\n{% include "lib/reduce.hip.j2" %}\n'
TAIL = '{% include "program/entry.hip.j2" %}\n'


@dataclass(frozen=True)
class ProbeParams(StageParams):
    """A kernel written in a test: ``body`` is the stage function's, ``shared`` the members of its LDS."""

    body: str
    pointers: tuple[tuple[str, str], ...]
    shared: str = "u8 unused;"

    @property
    def stage(self) -> str:
        return "probe"

    @property
    def args(self) -> tuple[Arg, ...]:
        state = Arg("state", "const State*")
        return (state, *(Arg(name, ctype) for name, ctype in self.pointers))

    @property
    def template_text(self) -> str:
        shared = f"struct Shared {{ {self.shared} }};\n"
        stage = "DEVICE void stage({{ k.signature }}, Shared& lds, int block, int blocks) {\n"
        return f"{HEAD}{shared}{stage}{self.body}\n}}\n{TAIL}"


def probe(
    device: str,
    body: str,
    arrays: dict[str, tuple[str, np.ndarray]],
    shared: str = "u8 unused;",
    blocks: tuple[int, ...] = (1,),
) -> dict[str, np.ndarray]:
    pointers = tuple((name, ctype) for name, (ctype, _) in arrays.items())
    params = ProbeParams(*common(device, 128), body, pointers, shared)
    return run_stage(params, {n: a for n, (_, a) in arrays.items()}, device=device, blocks=blocks)


def widths(wave: int) -> list[int]:
    return [1 << i for i in range(wave.bit_length())]


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_group_reductions(rng: np.random.Generator, device: str) -> None:
    _, wave, block = common(device, 128)
    sizes = widths(wave)
    x = rng.integers(-1000, 1000, block).astype(np.float32)
    lines = []
    for i, n in enumerate(sizes):
        lines.append(f"sums[{i} * kBlock + thread()] = group_sum<{n}>(x[thread()]);")
        lines.append(f"tops[{i} * kBlock + thread()] = group_max<{n}>(x[thread()]);")
    result = probe(
        device,
        "\n".join(lines),
        {
            "x": ("const float*", x),
            "sums": ("float*", np.zeros((len(sizes), block), np.float32)),
            "tops": ("float*", np.zeros((len(sizes), block), np.float32)),
        },
    )
    for i, n in enumerate(sizes):
        groups = x.reshape(-1, n)
        assert np.array_equal(result["sums"][i], np.repeat(groups.sum(1), n)), f"group_sum<{n}>"
        assert np.array_equal(result["tops"][i], np.repeat(groups.max(1), n)), f"group_max<{n}>"


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_integer_reductions_and_lane_reads(rng: np.random.Generator, device: str) -> None:
    _, wave, block = common(device, 128)
    x = rng.integers(0, 2**63, block, dtype=np.uint64)
    source = rng.integers(0, wave, block).astype(np.int32)
    body = """
    const u64 v = x[thread()];
    out64[thread()] = wave_sum_u64(v);
    out64[kBlock + thread()] = wave_max(v);
    out64[2 * kBlock + thread()] = wave_min(v);
    out32[thread()] = wave_sum_u32((u32)v);
    out32[kBlock + thread()] = wave_shuffle((u32)v, from[thread()]);
    out32[2 * kBlock + thread()] = wave_read((u32)v, kWave / 2);
    """
    result = probe(
        device,
        body,
        {
            "x": ("const u64*", x),
            "from": ("const i32*", source),
            "out64": ("u64*", np.zeros((3, block), np.uint64)),
            "out32": ("u32*", np.zeros((3, block), np.uint32)),
        },
    )
    waves = x.reshape(-1, wave)
    low = waves.astype(np.uint32)
    assert np.array_equal(result["out64"][0], np.repeat(waves.sum(1, dtype=np.uint64), wave))
    assert np.array_equal(result["out64"][1], np.repeat(waves.max(1), wave))
    assert np.array_equal(result["out64"][2], np.repeat(waves.min(1), wave))
    assert np.array_equal(result["out32"][0], np.repeat(low.sum(1, dtype=np.uint32), wave))
    taken = np.take_along_axis(low, source.reshape(-1, wave).astype(np.int64), 1)
    assert np.array_equal(result["out32"][1], taken.reshape(-1))
    assert np.array_equal(result["out32"][2], np.repeat(low[:, wave // 2], wave))


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_a_sum_used_by_one_lane_counts_all_lanes(rng: np.random.Generator, device: str) -> None:
    """LLVM up to 20 moved the last step of the sum into the branch, where other lanes no longer take part."""
    _, wave, block = common(device, 128)
    x = rng.integers(-1000, 1000, block).astype(np.float32)
    body = """
    const float sum = wave_sum(x[thread()]);
    if (lane() == 0) out[wave_id()] = sum;
    """
    out = np.full(block // wave, np.nan, np.float32)
    result = probe(device, body, {"x": ("const float*", x), "out": ("float*", out)})
    assert np.array_equal(result["out"], x.reshape(-1, wave).sum(1))


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_block_reductions_follow_each_other(rng: np.random.Generator, device: str) -> None:
    block = common(device, 128)[2]
    x = rng.integers(-1000, 1000, block).astype(np.float32)
    body = """
    const float v = x[thread()], sum = block_sum(v, lds.reduce), top = block_max(v, lds.reduce);
    out[thread()] = sum;
    out[kBlock + thread()] = top + block_sum(1.0f, lds.reduce);
    """
    out = np.zeros((2, block), np.float32)
    result = probe(device, body, {"x": ("const float*", x), "out": ("float*", out)}, "ReduceShared reduce;")
    assert (result["out"][0] == x.sum()).all() and (result["out"][1] == x.max() + block).all()


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_dot4(rng: np.random.Generator, device: str) -> None:
    block = common(device, 128)[2]
    count = 512
    a = rng.integers(-128, 128, (count, 4)).astype(np.int8)
    b = rng.integers(-128, 128, (count, 4)).astype(np.int8)
    a[0] = b[0] = -128
    c = rng.integers(-(2**20), 2**20, count).astype(np.int32)
    body = f"""
    for (int i = thread(); i < {count}; i += kBlock) {{
      out[i] = dot4(a[i], b[i], c[i]);
      out[{count} + i] = dot4_us((u32)a[i], b[i], c[i]);
      out[{2 * count} + i] = dot4_plain(a[i], b[i], c[i]);
    }}
    """
    result = probe(
        device,
        body,
        {
            "a": ("const i32*", a.view(np.int32).reshape(-1)),
            "b": ("const i32*", b.view(np.int32).reshape(-1)),
            "c": ("const i32*", c),
            "out": ("i32*", np.zeros((3, count), np.int32)),
        },
    )
    signed = (a.astype(np.int32) * b).sum(1) + c
    assert block and np.array_equal(result["out"][0], signed)
    assert np.array_equal(result["out"][1], (a.view(np.uint8).astype(np.int32) * b).sum(1) + c)
    assert np.array_equal(result["out"][2], signed)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_fast_functions(rng: np.random.Generator, device: str) -> None:
    x = np.concatenate(
        [rng.uniform(-125, 127.9, 1000), rng.uniform(-1, 1, 1000), np.arange(-126, 0), np.arange(1, 128)]
    )
    x = np.append(x, [-np.inf, np.inf, -200.0, 1e30, np.nan, 0.0]).astype(np.float32)
    body = f"""
    for (int i = thread(); i < {len(x)}; i += kBlock) {{
      const float v = x[i], p = v < 0.0f ? -v : v;
      out[i] = exp2f_(v);
      out[{len(x)} + i] = rsqrt_(p);
      out[{2 * len(x)} + i] = rcp_(v);
    }}
    """
    out = np.zeros((3, len(x)), np.float32)
    result = probe(device, body, {"x": ("const float*", x), "out": ("float*", out)})["out"]
    power, root, inverse = result[:, :-6], result[1, :-6], result[2, :-6]
    finite = x[:-6].astype(np.float64)
    assert np.abs(power[0] / np.exp2(finite) - 1).max() < 2.0**-21
    assert np.abs(root * np.sqrt(np.abs(finite)) - 1).max() < 2.0**-21
    assert np.abs(inverse * finite - 1).max() < 2.0**-21
    assert list(result[0, -6:-2]) == [0.0, np.inf, 0.0, np.inf]
    assert np.isnan(result[0, -2]) and result[0, -1] == 1.0


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_half_types(rng: np.random.Generator, device: str) -> None:
    bits = rng.permutation(65536)[:4096].astype(np.uint16)
    body = """
    for (int i = thread(); i < 2048; i += kBlock) {
      const u32 word = load4(in + 4 * i);
      f16[2 * i] = low_f16(word);
      f16[2 * i + 1] = high_f16(word);
      b16[2 * i] = bf16_as_f32((u16)word);
      b16[2 * i + 1] = bf16_as_f32(load2(in + 4 * i + 2));
    }
    """
    floats = np.zeros(4096, np.float32)
    arrays = {
        "in": ("const u8*", bits.view(np.uint8)),
        "f16": ("float*", floats),
        "b16": ("float*", floats.copy()),
    }
    result = probe(device, body, arrays)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(result["f16"], bits.view(np.float16).astype(np.float32))
    bf16 = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(result["b16"], bf16)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_atomics_count_every_thread(device: str) -> None:
    block = common(device, 128)[2]
    body = """
    if (thread() == 0) { lds.small = 0; lds.large = 0; }
    sync();
    lds_atomic_add_u32(&lds.small, 3);
    lds_atomic_add_u64(&lds.large, 0x100000001ull);
    atomic_add_u32(count, 1);
    fence_acq_rel();
    sync();
    if (block == blocks - 1 && thread() == 0) {
      atomic_store_u32(out, lds.small);
      out[1] = (u32)lds.large;
      out[2] = (u32)(lds.large >> 32);
      out[3] = (u32)blocks;
    }
    """
    arrays = {"count": ("u32*", np.zeros(1, np.uint32)), "out": ("u32*", np.zeros(4, np.uint32))}
    result = probe(device, body, arrays, "u32 small; u64 large;", blocks=(3,))
    assert result["count"][0] == 3 * block
    assert list(result["out"]) == [3 * block, block, block, 3]
