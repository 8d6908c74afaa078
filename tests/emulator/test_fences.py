"""What one workgroup wrote and another one reads needs a release and an acquire: without them, a trap.

The kernels are decode attention, whose parts the block that finishes last combines, and a grid barrier.
Fences are taken out of their assembly, one kind at a time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np
import pytest

from forgec.emulator import Device, EmulatorTrap
from forgec.plan.stages import AttentionDecodeParams
from tests.emulator.build import assemble, build
from tests.kernels.attention_cases import Case, exact_attention, make_case
from tests.kernels.harness import assert_close, compile_stage

SPLITS = 3

# What a kernel has to lose, by chip: pattern of the lines that become s_nop, and what the trap says.
LOSSES = {
    ("gfx1100", "waits for stores"): (r"s_waitcnt_vscnt null, 0x0", "without a release"),
    ("gfx1100", "invalidation of the shared cache"): (r"buffer_gl1_inv", "without an acquire"),
    ("gfx1100", "invalidation of the own cache"): (r"buffer_gl0_inv", "without an acquire"),
    ("gfx942", "write-back"): (r"buffer_wbl2 sc1", "without a release"),
    ("gfx942", "wait for the write-back"): (
        r"(?<=buffer_wbl2 sc1\n)\ts_waitcnt vmcnt\(0\).*",
        "without a release",
    ),
    ("gfx942", "invalidation"): (r"buffer_inv sc1", "without an acquire"),
}
EACH_LOSS = pytest.mark.parametrize(("arch", "loss"), LOSSES, ids=[f"{a}-{loss}" for a, loss in LOSSES])


def without(pattern: str, listing: str) -> str:
    broken, count = re.subn(pattern, "\ts_nop 0", listing)
    assert count, f"'{pattern}' is not in the kernel"
    return broken


def attend(arch: str, case: Case, mutate: Callable[[str], str] | None = None) -> np.ndarray:
    """Decode attention in ``SPLITS`` parts, every part in a block of its own."""
    device = f"emulated-{arch}"
    params = AttentionDecodeParams(*case.params(device, 128), SPLITS, 8)
    compiled = compile_stage(params, arch)
    code, listing = compiled.data, compiled.assembly
    if mutate is not None:
        listing = mutate(listing)
        code = assemble(listing, arch)
    emulator = Device(arch, threads=2)
    arrays = case.arrays() | {
        "counters": np.zeros(case.kv_heads, np.uint32),
        "state": case.state.to_array(),
    }
    pointers = {name: emulator.upload(array) for name, array in arrays.items()}
    pointers["partial"] = emulator.malloc(params.partial_floats * 4)
    pointers["out"] = emulator.malloc(case.q[0].nbytes)  # values are as long as keys
    kernarg = bytearray(params.kernarg_bytes)
    for argument, offset in params.unpack:
        struct.pack_into("<Q", kernarg, offset, pointers[argument.name])
    blocks = SPLITS * case.kv_heads
    emulator.launch(emulator.load(code, listing), params.symbol, blocks, params.block, bytes(kernarg))
    return emulator.read(pointers["out"], np.float32, case.q[0].size).reshape(case.q[0].shape)


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_attention_with_its_fences(arch: str) -> None:
    case = make_case(np.random.default_rng(), position=800, context=999)
    expected, magnitude = exact_attention(case, True)
    assert_close(attend(arch, case), expected[0], magnitude[0], case.keys + case.cache.key_length)


@EACH_LOSS
def test_attention_that_lost_a_fence(arch: str, loss: str) -> None:
    pattern, reason = LOSSES[arch, loss]
    case = make_case(np.random.default_rng(3), position=800, context=999)
    with pytest.raises(EmulatorTrap) as caught:
        attend(arch, case, lambda listing: without(pattern, listing))
    assert caught.value.kind == "missing-fence", caught.value.message
    assert reason in caught.value.message and "which workgroup" in caught.value.message


# Every block hands a value to its neighbour, 3 times, across a barrier over the grid: all waves wait at the
# block's barrier, one of them releases for all, and acquires for all.
GRID_BARRIER = """
DEVICE void grid_barrier(u32* counter, u32 target) {
  barrier();
  if (lane_id() == 0) {
    __hip_atomic_fetch_add(counter, 1u, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_AGENT);
    while (__hip_atomic_load(counter, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_AGENT) < target)
      __builtin_amdgcn_s_sleep(1);
  }
  barrier();
}
KERNEL BLOCK(256) void pass_on(u32* counter, u32* cells, u32 blocks) {
  for (u32 r = 0; r < 3; ++r) {
    u32 left = cells[((block_id() + blocks - 1) % blocks) * 256 + (lane_id() ^ 128)];
    grid_barrier(counter, blocks * (2 * r + 1));
    cells[block_id() * 256 + lane_id()] = left + 1;
    grid_barrier(counter, blocks * (2 * r + 2));
  }
}
"""


def pass_on(arch: str, mutate: Callable[[str], str] | None = None) -> None:
    code, listing = build(GRID_BARRIER, arch)
    if mutate is not None:
        listing = mutate(listing)
        code = assemble(listing, arch)
    blocks = 5
    device = Device(arch, threads=2, timeout=60)
    start = np.random.default_rng().integers(0, 1000, (blocks, 256)).astype(np.uint32)
    counter, cells = device.upload(np.zeros(1, np.uint32)), device.upload(start)
    device.launch(
        device.load(code, listing), "pass_on", blocks, 256, struct.pack("<QQI", counter, cells, blocks)
    )
    expected = start
    for _ in range(3):
        expected = np.roll(expected.reshape(blocks, 2, 128)[:, ::-1].reshape(blocks, 256), 1, axis=0) + 1
    assert np.array_equal(device.read(cells, np.uint32, start.size).reshape(start.shape), expected)


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942", "gfx90a", "gfx1201", "gfx1030", "gfx950"])
def test_a_grid_barrier_is_understood(arch: str) -> None:
    pass_on(arch)


@EACH_LOSS
def test_a_grid_barrier_that_lost_a_fence(arch: str, loss: str) -> None:
    pattern, reason = LOSSES[arch, loss]
    with pytest.raises(EmulatorTrap, match=reason) as caught:
        pass_on(arch, lambda listing: without(pattern, listing))
    assert caught.value.kind == "missing-fence"


@pytest.mark.parametrize(
    ("arch", "pattern"),
    [
        ("gfx1201", "s_wait_storecnt 0x0"),
        ("gfx1201", "global_inv scope:SCOPE_DEV"),
        ("gfx1030", "s_waitcnt_vscnt null, 0x0"),
        ("gfx90a", "buffer_wbinvl1_vol"),
        ("gfx950", "buffer_wbl2 sc1"),
    ],
)
def test_other_chips(arch: str, pattern: str) -> None:
    with pytest.raises(EmulatorTrap) as caught:
        pass_on(arch, lambda listing: without(pattern, listing))
    assert caught.value.kind == "missing-fence"


def test_what_an_earlier_launch_wrote_needs_no_fence() -> None:
    text = """
    KERNEL BLOCK(64) void shift(const u32* in, u32* out) {
      out[block_id() * 64 + lane_id()] = in[(block_id() ^ 1) * 64 + lane_id()] + 1;
    }"""
    code, listing = build(text, "gfx1100")
    device = Device("gfx1100", threads=2)
    module = device.load(code, listing)
    a, b = device.upload(np.arange(256, dtype=np.uint32)), device.malloc(1024)
    for _ in range(4):
        device.launch(module, "shift", 4, 64, struct.pack("<QQ", a, b))
        a, b = b, a
    assert np.array_equal(device.read(a, np.uint32, 256), np.arange(256) + 4)


def test_neighbours_of_a_word_and_sums_by_atomics() -> None:
    """Bytes beside another block's bytes are one's own; sums that only atomics touch need no fence."""
    text = """
    KERNEL BLOCK(64) void both(unsigned char* bytes, float* sum, u32* out) {
      int mine = 2 * lane_id() + block_id();
      bytes[mine] = block_id() + 1;
      __hip_atomic_fetch_add(sum, 1.0f, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
      barrier();
      out[block_id() * 64 + lane_id()] = bytes[mine];
    }"""
    code, listing = build(text, "gfx1100", "-munsafe-fp-atomics")
    device = Device("gfx1100", threads=2, seed=4)
    data, sums, out = device.malloc(128), device.upload(np.zeros(1, np.float32)), device.malloc(512)
    device.launch(device.load(code, listing), "both", 2, 64, struct.pack("<QQQ", data, sums, out))
    assert np.array_equal(device.read(out, np.uint32, 128), np.repeat([1, 2], 64))
    assert device.read(sums, np.float32, 1)[0] == 128
