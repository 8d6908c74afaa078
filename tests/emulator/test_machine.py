# ruff: noqa: E501 (C text and rows of cases are not broken)
"""Waves, workgroups and barriers: progress of spinning grids, interleaving, identities, hidden arguments,
counters."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from forgec.emulator import Device
from tests.emulator.build import build

ARCHES = ["gfx1100", "gfx942", "gfx90a", "gfx1201", "gfx1030"]

GRID_BARRIER = """
DEVICE void grid_barrier(u32* counter, u32 blocks, u32 round) {
  barrier();
  if (lane_id() == 0) {
    __hip_atomic_fetch_add(counter, 1u, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_AGENT);
    while (__hip_atomic_load(counter, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_AGENT) < blocks * round) %s;
  }
  barrier();
}
KERNEL BLOCK(128) void rounds(u32* counter, u32* cells, u32 blocks, u32 n) {
  u32 b = block_id();
  for (u32 r = 1; r <= n; ++r) {
    u32 left = cells[((b + blocks - 1) %% blocks) * 128 + lane_id()];
    grid_barrier(counter, blocks, 2 * r - 1);
    cells[b * 128 + lane_id()] = left + r;
    grid_barrier(counter, blocks, 2 * r);
  }
}
"""


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("sleep", ["__builtin_amdgcn_s_sleep(1)", ""])
def test_grid_barriers_make_progress(arch: str, sleep: str) -> None:
    blocks, n = 17, 5
    code, listing = build(GRID_BARRIER % sleep, arch)
    device = Device(arch, threads=2, timeout=60)
    start = np.random.default_rng().integers(0, 1000, (blocks, 128)).astype(np.uint32)
    counter, cells = device.upload(np.zeros(1, np.uint32)), device.upload(start)
    device.launch(
        device.load(code, listing), "rounds", blocks, 128, struct.pack("<QQII", counter, cells, blocks, n)
    )
    expected = np.roll(start, n, 0) + n * (n + 1) // 2
    assert np.array_equal(device.read(cells, np.uint32, blocks * 128).reshape(blocks, 128), expected)


IDENTITY = """
KERNEL BLOCK(256) void who(u32* out) {
  u32 x = __builtin_amdgcn_workitem_id_x(), y = __builtin_amdgcn_workitem_id_y(), z =
  __builtin_amdgcn_workitem_id_z(); u32 gx = __builtin_amdgcn_workgroup_id_x(), gy =
  __builtin_amdgcn_workgroup_id_y(), gz = __builtin_amdgcn_workgroup_id_z(); u32 group = gx + 3 * (gy + 2 *
  gz), local = x + 5 * (y + 4 * z); u32* at = out + (group * 60 + local) * 4; at[0] = x | y << 8 | z << 16;
  at[1] = gx | gy << 8 | gz << 16; at[2] = __builtin_amdgcn_workgroup_size_x() |
  __builtin_amdgcn_workgroup_size_y() << 8 | __builtin_amdgcn_workgroup_size_z() << 16; at[3] =
  __builtin_amdgcn_grid_size_x() | __builtin_amdgcn_grid_size_y() << 8 | __builtin_amdgcn_grid_size_z() <<
  16;
}
"""


@pytest.mark.parametrize("arch", ARCHES)
def test_ids_and_sizes_in_three_dimensions(arch: str) -> None:
    code, listing = build(IDENTITY, arch)
    device = Device(arch)
    out = device.malloc(12 * 60 * 16)
    device.launch(device.load(code, listing), "who", (3, 2, 2), (5, 4, 3), struct.pack("<Q", out))
    got = device.read(out, np.uint32, 12 * 60 * 4).reshape(2, 2, 3, 3, 4, 5, 4)
    gz, gy, gx, z, y, x = np.indices((2, 2, 3, 3, 4, 5))
    assert np.array_equal(got[..., 0], x | y << 8 | z << 16)
    assert np.array_equal(got[..., 1], gx | gy << 8 | gz << 16)
    assert (got[..., 2] == (5 | 4 << 8 | 3 << 16)).all()
    assert (got[..., 3] == (15 | 8 << 8 | 6 << 16)).all()


HISTOGRAM = """
KERNEL BLOCK(256) void histogram(const u32* in, u64* out, u32 n, u32 bins) {
  extern SHARED u64 local[];
  for (u32 i = lane_id(); i < bins; i += 256) local[i] = 0;
  barrier();
  for (u32 i = block_id() * 256 + lane_id(); i < n; i += 1024)
    __hip_atomic_fetch_add(&local[in[i] % bins], 1ul + ((u64)in[i] << 32), __ATOMIC_RELAXED,
    __HIP_MEMORY_SCOPE_WORKGROUP);
  barrier();
  for (u32 i = lane_id(); i < bins; i += 256)
    __hip_atomic_fetch_add(&out[i], local[i], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
"""


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("seed", [None, 7])
def test_lds_and_global_atomics(arch: str, seed: int | None) -> None:
    code, listing = build(HISTOGRAM, arch)
    device = Device(arch, threads=2, seed=seed)
    rng = np.random.default_rng()
    n, bins = int(rng.integers(2000, 5000)), int(rng.integers(100, 400))
    data = rng.integers(0, 1 << 20, n).astype(np.uint32)
    source, out = device.upload(data), device.upload(np.zeros(bins, np.uint64))
    device.launch(
        device.load(code, listing),
        "histogram",
        4,
        256,
        struct.pack("<QQII", source, out, n, bins),
        dynamic_lds=8 * bins,
    )
    expected = np.zeros(bins, np.uint64)
    np.add.at(expected, data % bins, np.uint64(1) + (data.astype(np.uint64) << np.uint64(32)))
    assert np.array_equal(device.read(out, np.uint64, bins), expected)


CALLS = """
__attribute__((noinline)) DEVICE float twice(float x) { return x * 2; }
__attribute__((noinline)) DEVICE float deep(float x, int n) {
  float scratch[24];
  for (int i = 0; i < 24; ++i) scratch[i] = x + i;
  float s = 0;
  for (int i = 0; i < 24; ++i) s += twice(scratch[(i * n) % 24]);
  return s;
}
__constant__ __attribute__((device)) float table[4] = {1.0f, 10.0f, 100.0f, 1000.0f};
KERNEL BLOCK(64) void call(const float* in, float* out, int n) {
  out[lane_id()] = deep(in[lane_id()], n) * table[lane_id() & 3];
}
"""


@pytest.mark.parametrize("arch", ARCHES)
def test_calls_scratch_and_constants(arch: str) -> None:
    code, listing = build(CALLS.replace("__constant__ ", ""), arch)
    device = Device(arch)
    x = np.random.default_rng().standard_normal(64).astype(np.float32)
    source, out = device.upload(x), device.malloc(256)
    device.launch(device.load(code, listing), "call", 1, 64, struct.pack("<QQi", source, out, 5))
    i = np.arange(24) * 5 % 24
    expected = 2 * (x[:, None].astype(np.float64) + i).sum(1) * np.array([1, 10, 100, 1000] * 16)
    np.testing.assert_allclose(device.read(out, np.float32, 64), expected, rtol=1e-5)


def test_seed_reproduces_and_varies_the_order() -> None:
    text = """
    KERNEL BLOCK(64) void order(u32* ticket, u32* out) {
      if (lane_id() == 0) out[block_id()] = __hip_atomic_fetch_add(ticket, 1u, __ATOMIC_RELAXED,
      __HIP_MEMORY_SCOPE_AGENT);
    }"""
    code, listing = build(text, "gfx1100")

    def run(seed: int | None) -> list[int]:
        device = Device("gfx1100", threads=1, seed=seed)
        ticket, out = device.upload(np.zeros(1, np.uint32)), device.malloc(256)
        device.launch(device.load(code, listing), "order", 64, 64, struct.pack("<QQ", ticket, out))
        return list(device.read(out, np.uint32, 64).tolist())

    assert run(None) == list(range(64))
    assert run(3) == run(3)
    assert sorted(run(3)) == list(range(64))
    assert len({tuple(run(s)) for s in range(1, 6)}) > 1


def test_counters() -> None:
    text = "KERNEL BLOCK(64) void axpy(const float* x, float* y, int n) { int i = block_id() * 64 + lane_id(); if (i < n) y[i] = 2 * x[i] + y[i]; }"
    code, listing = build(text, "gfx1100")
    device = Device("gfx1100", threads=2, profile=True)
    n = 1000
    x, y = device.upload(np.ones(n, np.float32)), device.upload(np.ones(n, np.float32))
    found = device.launch(device.load(code, listing), "axpy", 16, 64, struct.pack("<QQi", x, y, n))
    assert found.global_loaded == 8 * n and found.global_stored == 4 * n
    assert found.mix["s_endpgm"] == 32 and found.instructions == sum(found.mix.values())
    assert found.mix["global_store_b32"] == 32 - 1 + (1 if n > 31 * 32 else 0)
    assert found.valu and found.salu and found.lane_instructions <= 32 * found.valu
    loads = [s for s in found.sites if "load" in s.text and "global" in s.text]
    assert loads and all(s.line_efficiency > 0.9 for s in loads)


def test_strided_loads_and_bank_conflicts_are_counted() -> None:
    text = """
    KERNEL BLOCK(32) void stride(const float* x, float* y) {
      SHARED float tile[1024];
      for (int i = 0; i < 32; ++i) tile[i * 32 + lane_id()] = x[lane_id() * 32 + i];
      barrier();
      float s = 0;
      for (int i = 0; i < 32; ++i) s += tile[lane_id() * 32 + i];
      y[lane_id()] = s;
    }"""
    code, listing = build(text, "gfx1100")
    device = Device("gfx1100", threads=1, profile=True)
    data = np.random.default_rng().standard_normal((32, 32)).astype(np.float32)
    x, y = device.upload(data), device.malloc(128)
    found = device.launch(device.load(code, listing), "stride", 1, 32, struct.pack("<QQ", x, y))
    assert sum(s.conflict_cycles for s in found.sites if "ds_load" in s.text) > 100
    assert sum(s.conflict_cycles for s in found.sites if "ds_store" in s.text) == 0


def test_lines_of_memory_are_counted_by_allocation() -> None:
    text = """
    KERNEL BLOCK(64) void sums(const u32* once, const u32* part, const u32* again, u32* out) {
      u32 t = lane_id(), b = block_id(), s = 0;
      for (int i = 0; i < 4; ++i) s += once[(b * 4 + i) * 64 + t];
      s += part[t * 32 + 3] + part[t * 32 + 7];
      for (int i = 0; i < 40; ++i) s += again[(i % 20) * 32 + t % 32];
      for (int i = 0; i < 40; ++i) s += again[640 + i * 32 + t % 32];
      for (int i = 0; i < 40; ++i) s += again[640 + i * 32 + 31 - t % 32];
      out[b * 64 + t] = s;
    }"""
    code, listing = build(text, "gfx1100")
    device = Device("gfx1100", threads=2, profile=True)
    once, part = device.upload(np.zeros(8 * 256, np.uint32)), device.upload(np.zeros(64 * 32, np.uint32))
    again, out = device.upload(np.zeros(60 * 32, np.uint32)), device.malloc(8 * 256)
    module = device.load(code, listing)
    for _ in range(2):  # every launch begins anew
        found = device.launch(module, "sums", 8, 64, struct.pack("<QQQQ", once, part, again, out))
        lines = {line.address: line for line in found.lines}
        # blocks read different lines in full
        assert (lines[once].fetched, lines[once].lines, lines[once].loaded) == (64, 64, 8192)
        assert (lines[once].used, lines[once].repeated) == (1, 0)
        # 2 of 32 words of each line, again in each of 8 blocks
        assert (lines[part].lines, lines[part].loaded, lines[part].used) == (64, 512, 1 / 16)
        assert lines[part].fetched == 8 * 64 and lines[part].repeated == 7 / 8
        # a wave keeps 20 lines from one turn to the next, and not 40
        assert (lines[again].fetched, lines[again].lines) == (16 * (20 + 2 * 40), 60)
        assert out not in lines
