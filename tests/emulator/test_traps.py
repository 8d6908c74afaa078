# ruff: noqa: E501 (C text and rows of cases are not broken)
"""What a GPU would leave undefined stops the emulator, with the kernel, the instruction and the lane."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from forgec.emulator import Device, EmulatorTrap
from forgec.errors import DeviceError
from tests.emulator.build import assemble, build

ARCHES = ["gfx1100", "gfx942"]
COPY = """
KERNEL BLOCK(256) void copy(const u32* in, u32* out, int n) {
  int i = block_id() * 64 + lane_id();
  if (i < n) out[i] = in[i] + 1;
}
"""


def launch(device: Device, text: str, symbol: str, block: int, *arguments: int, grid: int = 1) -> None:
    code, listing = build(text, device.arch)
    packed = b"".join(struct.pack("<Q" if a > 0xFFFFFFFF else "<i", a) for a in arguments)
    device.launch(device.load(code, listing), symbol, grid, block, packed)


def trap(
    device: Device, kind: str, text: str, symbol: str, block: int, *arguments: int, grid: int = 1
) -> EmulatorTrap:
    with pytest.raises(EmulatorTrap) as caught:
        launch(device, text, symbol, block, *arguments, grid=grid)
    assert caught.value.kind == kind, caught.value.message
    assert caught.value.kernel == symbol and f"'{symbol}'" in caught.value.message
    return caught.value


@pytest.mark.parametrize("arch", ARCHES)
class TestMemory:
    def test_one_element_past_the_end(self, arch: str) -> None:
        device = Device(arch)
        source, out = device.upload(np.arange(65, dtype=np.uint32)), device.malloc(64 * 4)
        launch(device, COPY, "copy", 64, source, out, 64)
        assert np.array_equal(device.read(out, np.uint32, 64), np.arange(1, 65))
        found = trap(device, "out-of-bounds", COPY, "copy", 65, source, out, 65)
        assert (
            "store" in found.instruction and found.wave * (32 if arch == "gfx1100" else 64) + found.lane == 64
        )
        assert f"{out + 256:#x}" in found.message

    def test_freed(self, arch: str) -> None:
        device = Device(arch)
        source, out = device.upload(np.arange(64, dtype=np.uint32)), device.malloc(256)
        device.free(source)
        assert "load" in trap(device, "freed", COPY, "copy", 64, source, out, 64).instruction

    def test_misaligned_atomic(self, arch: str) -> None:
        device = Device(arch)
        text = "KERNEL void bump(char* p) { __hip_atomic_fetch_add((u32*)(p + 2), 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }"
        trap(device, "misaligned", text, "bump", 1, device.upload(np.zeros(4, np.uint32)))

    def test_strict_alignment(self, arch: str) -> None:
        text = "KERNEL void odd(const char* p, u32* out) { u32 x; __builtin_memcpy(&x, p + 1 + lane_id(), 4); out[lane_id()] = x; }"
        buffer = np.zeros(16, np.uint32)
        loose = Device(arch)
        launch(loose, text, "odd", 4, loose.upload(buffer), loose.malloc(64))
        strict = Device(arch, strict_alignment=2)
        aligned = "KERNEL void odd(const u32* p, u32* out) { out[lane_id()] = p[lane_id()]; }"
        trap(strict, "misaligned", aligned, "odd", 4, strict.upload(buffer) + 1, strict.malloc(64))

    def test_unwritten_memory_as_an_index(self, arch: str) -> None:
        device = Device(arch)
        text = "KERNEL void gather(const u32* index, const u32* in, u32* out) { out[lane_id()] = in[index[lane_id()]]; }"
        trap(
            device,
            "uninitialised-address",
            text,
            "gather",
            32,
            device.malloc(128),
            device.upload(np.zeros(32, np.uint32)),
            device.malloc(128),
        )

    def test_unwritten_memory_decides_a_branch(self, arch: str) -> None:
        device = Device(arch)
        text = "KERNEL void branch(const u32* in, u32* out) { if (in[lane_id()] > 5) out[lane_id()] = 1; }"
        trap(
            device,
            "uninitialised-branch",
            text,
            "branch",
            32,
            device.malloc(128),
            device.upload(np.zeros(32, np.uint32)),
        )

    def test_unwritten_values_may_be_copied_but_not_read_back(self, arch: str) -> None:
        device = Device(arch)
        out = device.malloc(256)
        launch(device, COPY, "copy", 64, device.malloc(256), out, 64)
        with pytest.raises(DeviceError, match="holds no defined value"):
            device.read(out, np.uint32, 64)
        assert device.read(out, np.uint32, 64, allow_unwritten=True).size == 64


RACE = """
KERNEL BLOCK(256) void reverse(const u32* in, u32* out) {
  SHARED u32 tile[256];
  u32 t = lane_id();
  tile[t] = in[t];
  %s
  out[t] = tile[255 - t];
}
"""


@pytest.mark.parametrize("arch", ARCHES)
class TestLds:
    def test_race_between_waves(self, arch: str) -> None:
        device = Device(arch)
        source, out = device.upload(np.arange(256, dtype=np.uint32)), device.malloc(1024)
        launch(device, RACE % "barrier();", "reverse", 256, source, out)
        assert np.array_equal(device.read(out, np.uint32, 256), np.arange(256)[::-1])
        # without the barrier a wave reads what another wrote, or what nobody wrote yet, or writes what was
        # read
        with pytest.raises((EmulatorTrap, DeviceError)) as caught:
            launch(device, RACE % "", "reverse", 256, source, out)
            device.read(out, np.uint32, 256)
        assert "race" in caught.value.message or "no defined value" in caught.value.message

    def test_out_of_bounds(self, arch: str) -> None:
        device = Device(arch)
        text = "KERNEL void far(u32* out, int i) { SHARED u32 x[64]; x[lane_id()] = 1; barrier(); out[lane_id()] = x[lane_id() + i]; }"
        found = trap(device, "lds-out-of-bounds", text, "far", 64, device.malloc(256), 1)
        assert found.instruction.startswith("ds_")

    def test_unwritten_lds_as_an_address(self, arch: str) -> None:
        device = Device(arch)
        text = "KERNEL void stray(const u32* in, u32* out) { SHARED u32 x[64]; x[lane_id() & 31] = 0; barrier(); out[lane_id()] = in[x[lane_id()]]; }"
        trap(
            device,
            "uninitialised-address",
            text,
            "stray",
            64,
            device.upload(np.zeros(64, np.uint32)),
            device.malloc(256),
        )


@pytest.mark.parametrize("arch", [*ARCHES, "gfx1201", "gfx1030"])
def test_missing_wait(arch: str) -> None:
    code, listing = build(COPY, arch)
    waits = re.findall(r"^\s*(?:s_waitcnt vmcnt\(0\)|s_wait_loadcnt 0x0).*$", listing, re.M)
    assert waits
    broken = listing.replace(waits[0], "\ts_nop 0", 1)
    device = Device(arch)
    source, out = device.upload(np.arange(64, dtype=np.uint32)), device.malloc(256)
    with pytest.raises(EmulatorTrap) as caught:
        device.launch(
            device.load(assemble(broken, arch), broken), "copy", 1, 64, struct.pack("<QQi", source, out, 64)
        )
    assert caught.value.kind == "missing-wait"
    device.launch(device.load(code, listing), "copy", 1, 64, struct.pack("<QQi", source, out, 64))


@pytest.mark.parametrize("arch", ARCHES)
def test_endless_wait_is_a_hang(arch: str) -> None:
    device = Device(arch, timeout=1.0)
    text = "KERNEL void spin(volatile u32* flag) { while (*flag == 0) __builtin_amdgcn_s_sleep(1); }"
    trap(device, "hang", text, "spin", 1, device.upload(np.zeros(1, np.uint32)))


def test_trap_instruction() -> None:
    trap(
        Device("gfx1100"),
        "s-trap",
        "KERNEL void bad(u32* p) { __builtin_trap(); }",
        "bad",
        1,
        Device("gfx1100").malloc(4),
    )


def test_uncovered_instruction_is_named() -> None:
    text = 'KERNEL void odd(u32* p) { asm volatile("s_rfe_b64 s[2:3]" ::: "memory"); *p = 1; }'
    device = Device("gfx1100")
    with pytest.raises(
        DeviceError, match=r"does not cover 's_rfe_b64' at 0x[0-9a-f]+ of kernel 'odd' on gfx1100"
    ):
        launch(device, text, "odd", 1, device.malloc(4))


def test_listing_of_other_code_is_refused() -> None:
    code, _ = build(COPY, "gfx1100")
    _, other = build(COPY.replace("+ 1", "+ 2"), "gfx1100")
    device = Device("gfx1100")
    module = device.load(code, other)
    out = device.malloc(256)
    with pytest.raises(DeviceError, match="does not give the bytes"):
        device.launch(module, "copy", 1, 64, struct.pack("<QQi", out, out, 64))


def test_wrong_architecture_and_damage() -> None:
    code, _ = build(COPY, "gfx1100")
    with pytest.raises(DeviceError, match="is for gfx1100, the device is gfx942"):
        Device("gfx942").load(code)
    with pytest.raises(DeviceError, match="starts with"):
        Device("gfx1100").load(b"not a code object")
    with pytest.raises(DeviceError):
        Device("gfx1100").load(code[: len(code) // 2])


def test_illegal_launches() -> None:
    code, listing = build(COPY, "gfx1100")
    device = Device("gfx1100")
    module = device.load(code, listing)
    with pytest.raises(DeviceError, match="no kernel 'other'"):
        device.launch(module, "other", 1, 1, b"")
    with pytest.raises(DeviceError, match="takes 20 bytes of arguments, found 8"):
        device.launch(module, "copy", 1, 64, bytes(8))
    with pytest.raises(DeviceError, match="at most 256 threads"):
        device.launch(module, "copy", 1, 512, bytes(20))
    with pytest.raises(DeviceError, match="bytes of LDS"):
        device.launch(module, "copy", 1, 64, bytes(20), dynamic_lds=1 << 20)


def test_out_of_memory_and_bad_free() -> None:
    device = Device("gfx1100", memory=1 << 20)
    pointer = device.malloc(1 << 19)
    with pytest.raises(DeviceError, match="out of device memory"):
        device.malloc(1 << 20)
    device.free(pointer)
    with pytest.raises(DeviceError, match="not a live allocation"):
        device.free(pointer)
    with pytest.raises(DeviceError, match="freed"):
        device.write(pointer, b"x")
