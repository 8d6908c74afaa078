"""Persistent kernels: all workgroups are resident, barriers across the grid end, and spinning is cheap.

The kernel passes 50 barriers with 96 workgroups of 256 threads, as a compiled model's persistent kernel does.
"""

from __future__ import annotations

import ctypes
import struct
import time
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.driver import EmulatedDriver
from forgec.errors import DeviceError
from tests.emulator.build import build
from tests.emulator.devices import arguments, code, front

BLOCKS, THREADS, ROUNDS = 96, 256, 50
# A barrier of relaxed atomics between fences; the last to arrive opens it. Between two barriers each block
# adds its neighbour's value to its own, through two cells a block that take turns.
PERSISTENT = """
struct Gate { u32 arrived, generation; };
DEVICE void grid_barrier(Gate* gate, u32 blocks) {
  barrier();
  if (lane_id() == 0) {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");
    u32 before = __hip_atomic_load(&gate->generation, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    u32 ahead = __hip_atomic_fetch_add(&gate->arrived, 1u, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT);
    if (ahead == blocks - 1) {
      __hip_atomic_store(&gate->arrived, 0u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
      __hip_atomic_fetch_add(&gate->generation, 1u, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_AGENT);
    } else {
      while (__hip_atomic_load(&gate->generation, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) == before) WAIT;
    }
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent");
  }
  barrier();
}
KERNEL BLOCK(256) void persistent(Gate* gate, u32* cells, u32 blocks, u32 rounds) {
  u32 b = block_id(), left = (b + blocks - 1) % blocks, n = blocks * 256, at = b * 256 + lane_id();
  for (u32 r = 0; r < rounds; ++r) {
    u32 from = r % 2 * n, to = n - from;
    cells[to + at] = cells[from + at] + cells[from + left * 256 + (lane_id() ^ 77)];
    grid_barrier(gate, blocks);
  }
}
"""


def text(wait: str = "__builtin_amdgcn_s_sleep(1)") -> str:
    return PERSISTENT.replace("WAIT", wait)


def cells(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(what the cells hold before, what the first half holds after an even number of rounds)."""
    start = np.zeros((2, BLOCKS, THREADS), np.uint32)
    start[0] = rng.integers(0, 1 << 32, (BLOCKS, THREADS), dtype=np.uint64)
    after = start[0]
    for _ in range(ROUNDS):
        after = after + np.roll(after, 1, axis=0)[:, np.arange(THREADS) ^ 77]
    return start, after


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("wait", ["__builtin_amdgcn_s_sleep(1)", ""])
@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_fifty_grid_barriers(arch: str, wait: str, checks: bool) -> None:
    rng = np.random.default_rng()
    start, after = cells(rng)
    image, listing = build(text(wait), arch)
    device = Device(arch, threads=2, timeout=60, checks=checks)
    module = device.load(image, listing)
    device.compiled(module, "persistent")
    gate, memory = device.upload(np.zeros(2, np.uint32)), device.upload(start)
    kernarg = struct.pack("<QQII", gate, memory, BLOCKS, ROUNDS)
    begin = time.process_time()
    counters = device.launch(module, "persistent", BLOCKS, THREADS, kernarg)
    spent = time.process_time() - begin
    assert np.array_equal(device.read(memory, np.uint32, BLOCKS * THREADS).reshape(BLOCKS, THREADS), after)
    assert spent / ROUNDS < 5e-3
    # A block's first wave polls about twice in each barrier; a wave that really spun would poll for ever.
    polls = sum(n for name, n in counters.mix.items() if name.startswith("global_load"))
    assert polls < ROUNDS * BLOCKS * (2 * THREADS // 32 + 30)
    device.close()


def test_the_order_of_workgroups_does_not_matter() -> None:
    start, after = cells(np.random.default_rng())
    image, listing = build(text(), "gfx1100")
    for seed in (1, 2):
        device = Device("gfx1100", threads=1, seed=seed, timeout=60, checks=False)
        gate, memory = device.upload(np.zeros(2, np.uint32)), device.upload(start)
        kernarg = struct.pack("<QQII", gate, memory, BLOCKS, ROUNDS)
        device.launch(device.load(image, listing), "persistent", BLOCKS, THREADS, kernarg)
        assert np.array_equal(device.read(memory, np.uint32, after.size).reshape(after.shape), after)
        device.close()


def test_cooperative_launch_of_the_emulated_driver() -> None:
    start, after = cells(np.random.default_rng())
    driver = EmulatedDriver("gfx1100", memory=64 << 20)
    kernel = driver.get_function(driver.load_module(code(text=text()), "persistent.hsaco"), "persistent")
    gate, memory = driver.malloc(8), driver.malloc(start.nbytes)
    driver.memset(gate, 0, 8)
    driver.upload(memory, start.tobytes())
    most = driver.resident_blocks(kernel, THREADS)
    assert most == 96 * 2 * 16 // 8  # 16 waves on each of the two SIMDs of 96 compute units, 8 waves a block
    assert driver.resident_blocks(kernel, THREADS, 40000) == 48 * 3  # 128 KiB of LDS in a pair of units
    with pytest.raises(DeviceError, match=f"{most + 1} blocks of 256 threads that wait") as caught:
        driver.launch_cooperative(kernel, most + 1, THREADS, arguments(gate, memory, most + 1, 2))
    assert f"holds {most}" in caught.value.hint
    driver.launch_cooperative(kernel, BLOCKS, THREADS, arguments(gate, memory, BLOCKS, ROUNDS))
    into = bytearray(after.nbytes)
    driver.download(memory, into)
    assert np.array_equal(np.frombuffer(into, np.uint32).reshape(after.shape), after)
    driver.close()


def test_cooperative_launch_through_hip() -> None:
    front()
    from hip import hip

    def ok(result: Any) -> Any:
        error, *values = result
        assert error == hip.hipError_t.hipSuccess, error
        return values[0] if values else None

    start, after = cells(np.random.default_rng())
    kernel = ok(hip.hipModuleGetFunction(ok(hip.hipModuleLoadData(code(text=text()))), b"persistent"))
    per_unit = ok(hip.hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(kernel, THREADS, 0))
    assert per_unit * 96 >= BLOCKS
    gate, memory = ok(hip.hipMalloc(8)), ok(hip.hipMalloc(start.nbytes))
    ok(hip.hipMemset(gate, 0, 8))
    ok(hip.hipMemcpy(memory, start, start.nbytes, hip.hipMemcpyKind.hipMemcpyHostToDevice))
    values = (
        ctypes.c_void_p(int(gate)),
        ctypes.c_void_p(int(memory)),
        ctypes.c_uint(BLOCKS),
        ctypes.c_uint(ROUNDS),
    )
    params = (ctypes.c_void_p * 4)(*(ctypes.addressof(v) for v in values))
    at = ctypes.addressof(params)
    ok(hip.hipModuleLaunchCooperativeKernel(kernel, BLOCKS, 1, 1, THREADS, 1, 1, 0, None, at))
    ok(hip.hipDeviceSynchronize())
    back = np.zeros_like(after)
    ok(hip.hipMemcpy(back, memory, back.nbytes, hip.hipMemcpyKind.hipMemcpyDeviceToHost))
    assert np.array_equal(back, after)


# A writer puts a number into both halves of a word; a reader counts words whose halves differ, and how often
# they changed while it looked.
HALVES = """
KERNEL BLOCK(32) void halves(u64* words, u32* torn, u32 rounds) {
  u64* own = words + lane_id();
  u32 bad = 0, changed = 0, last = 0;
  for (u32 r = 1; r <= rounds; ++r) {
    if (block_id() % 2 == 0) {
      __hip_atomic_store(own, (u64)r << 32 | r, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    } else {
      const u64 word = __hip_atomic_load(own, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
      bad += (u32)(word >> 32) != (u32)word;
      changed += (u32)word != last;
      last = (u32)word;
    }
  }
  torn[(block_id() * 32 + lane_id()) * 2] = bad;
  torn[(block_id() * 32 + lane_id()) * 2 + 1] = changed;
}
"""


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_two_words_travel_whole(arch: str) -> None:
    image, listing = build(HALVES, arch)
    device = Device(arch, threads=2, timeout=60)
    module = device.load(image, listing)
    device.compiled(module, "halves")
    changed = 0
    for _ in range(20):  # until the two workgroups have run at the same time
        words, torn = device.upload(np.zeros(64, np.uint64)), device.upload(np.zeros((4, 32, 2), np.uint32))
        device.launch(module, "halves", 2, 32, struct.pack("<QQI", words, torn, 50_000))
        seen = device.read(torn, np.uint32, 2 * 32 * 2).reshape(2, 32, 2)[1]
        assert not seen[:, 0].any()
        changed = int(seen[:, 1].max())
        if changed > 100:
            break
    assert changed > 1
    device.close()
