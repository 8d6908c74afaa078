"""Seeded faults: each mutation of a correct kernel is caught, by a trap or by a wrong number."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np
import pytest

from forgec.emulator import Device, EmulatorTrap
from forgec.errors import DeviceError
from tests.emulator.build import assemble, build

ROWS, COLS = 5, 200

# Softmax of each row, times a vector held in LDS: shuffles, LDS, barriers, masks, a guarded store, a
# last-block sum.
KERNEL = """
DEVICE float lanes_max(float x) {
  for (int o = WIDTH / 2; o; o >>= 1)
    x = __builtin_fmaxf(x, __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(((lane_id() ^ o) & (WAVE -
    1)) * 4, __builtin_bit_cast(int, x))));
  return x;
}
DEVICE float lanes_sum(float x) {
  for (int o = WIDTH / 2; o; o >>= 1)
    x += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(((lane_id() ^ o) & (WAVE - 1)) * 4,
    __builtin_bit_cast(int, x)));
  return x;
}
KERNEL BLOCK(256) void row_softmax(const float* in, const float* scale, float* out, float* partial, u32*
done, float* total, int n) {
  SHARED float part[8];
  SHARED float kept[256];
  int t = lane_id(), row = block_id();
  float x = MASK ? in[row * n + t] : -1e30f;
  float m = lanes_max(x);
  if (t % WAVE == 0) part[t / WAVE] = m;
  BARRIER_1
  m = part[0];
  for (int i = 1; i < 256 / WAVE; ++i) m = __builtin_fmaxf(m, part[i]);
  BARRIER_2
  float e = __builtin_amdgcn_exp2f((x - m) * 1.44269504f);
  float s = lanes_sum(e);
  if (t % WAVE == 0) part[t / WAVE] = s;
  kept[SLOT] = e;
  BARRIER_3
  s = 0;
  for (int i = 0; i < 256 / WAVE; ++i) s += part[i];
  if (STORE) out[row * n + t] = kept[255 - (255 - t)] / s * scale[t];
  if (t == 0) {
    partial[row] = s;
    FENCE
    u32 seen = __hip_atomic_fetch_add(done, 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    if (seen == LAST) {
      ACQUIRE
      float sum = 0;
      for (int i = 0; i < ROWS; ++i) sum += partial[i];
      total[0] = sum;
    }
  }
}
"""
DEFAULTS = {
    "WIDTH": "WAVE",
    "MASK": "t < n",
    "STORE": "t < n",
    "BARRIER_1": "barrier();",
    "BARRIER_2": "barrier();",
    "BARRIER_3": "barrier();",
    "SLOT": "t",
    "LAST": "ROWS - 1",
    "FENCE": '__builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");',
    "ACQUIRE": '__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent");',
}


def source(arch: str, **changes: str) -> str:
    """The kernel's text with the given pieces replaced."""
    text = KERNEL
    for name, piece in {**DEFAULTS, **changes}.items():
        text = re.sub(rf"\b{name}\b", piece, text)
    wave = 64 if arch.startswith("gfx9") else 32
    return f"#define WAVE {wave}\n#define ROWS {ROWS}\n{text}"


def check(arch: str, text: str, mutate: Callable[[str], str] | None = None, seed: int | None = None) -> None:
    """Run the kernel; raises EmulatorTrap, DeviceError or AssertionError when something is wrong."""
    code, listing = build(text, arch)
    if mutate is not None:
        changed = mutate(listing)
        assert changed != listing, "the mutation found nothing to change"
        code, listing = assemble(changed, arch), changed
    device = Device(arch, threads=2, seed=seed, timeout=60)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    scale = rng.uniform(0.5, 2, COLS).astype(np.float32)
    pointers = [
        device.upload(x),
        device.upload(scale),
        device.malloc(ROWS * COLS * 4),
        device.malloc(ROWS * 4),
        device.upload(np.zeros(1, np.uint32)),
        device.malloc(4),
    ]
    device.launch(
        device.load(code, listing), "row_softmax", ROWS, 256, struct.pack("<QQQQQQi", *pointers, COLS)
    )
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    expected = e / e.sum(1, keepdims=True) * scale
    np.testing.assert_allclose(
        device.read(pointers[2], np.float32, ROWS * COLS).reshape(ROWS, COLS), expected, rtol=1e-5
    )
    np.testing.assert_allclose(device.read(pointers[5], np.float32, 1), e.sum(), rtol=1e-5)


def drop(pattern: str, which: int = 0) -> Callable[[str], str]:
    """A mutation of the assembly that turns one matching line into s_nop."""

    def mutate(listing: str) -> str:
        lines = re.findall(pattern, listing, re.M)
        found = list(re.finditer(pattern, listing, re.M))
        assert len(lines) > which
        at = found[which]
        return listing[: at.start()] + "\ts_nop 0" + listing[at.end() :]

    return mutate


def widen_exec(listing: str) -> str:
    """The guarded store runs under all lanes: the saveexec before it keeps EXEC as it is."""
    found = list(re.finditer(r"^\s*(v_cmpx_\S+|s_and_saveexec_b(?:32|64)) .*$", listing, re.M))
    assert found
    pieces = listing
    for at in reversed(found):
        line = at.group()
        saved = re.search(r"s_and_saveexec_b(32|64) (\S+), ", line)
        new = (
            f"\ts_mov_b{saved.group(1)} {saved.group(2)}, exec{'_lo' if saved.group(1) == '32' else ''}"
            if saved
            else "\ts_nop 0"
        )
        pieces = pieces[: at.start()] + new + pieces[at.end() :]
    return pieces


FAULTS: dict[str, tuple[dict[str, str], Callable[[str], str] | None]] = {
    "first barrier dropped": ({"BARRIER_1": ""}, None),
    "barrier between reading and reusing LDS dropped": ({"BARRIER_2": ""}, None),
    "last barrier dropped": ({"BARRIER_3": ""}, None),
    "barrier instruction dropped": ({}, drop(r"^\s*s_barrier.*$", 0)),
    "wait for a load dropped": ({}, drop(r"^\s*s_waitcnt vmcnt\(0\).*$")),
    "wait for LDS dropped": ({}, drop(r"^\s*s_waitcnt lgkmcnt\(0\).*$", 4)),
    "bound off by one on the store": ({"STORE": "t <= n"}, None),
    "bound off by one on the load": ({"MASK": "t <= n"}, None),
    "shuffle half as wide": ({"WIDTH": "(WAVE / 2)"}, None),
    "EXEC not narrowed": ({}, widen_exec),
    "LDS regions overlap": ({"SLOT": "(t & 127)"}, None),
    "fence counted one block early": ({"LAST": "ROWS - 2"}, None),
    "release fence dropped": ({"FENCE": ""}, None),
    "acquire fence dropped": ({"ACQUIRE": ""}, None),
}


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_the_kernel_is_right(arch: str) -> None:
    check(arch, source(arch))
    check(arch, source(arch), seed=11)


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(arch: str, fault: str) -> None:
    changes, mutate = FAULTS[fault]
    with pytest.raises((EmulatorTrap, DeviceError, AssertionError)) as caught:
        check(arch, source(arch, **changes), mutate)
    assert "found nothing to change" not in str(caught.value)
