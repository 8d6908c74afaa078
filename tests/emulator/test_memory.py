# ruff: noqa: E501 (C text is not broken)
"""Loads, stores and atomics of every width in every space, against NumPy; rounding modes; packed halves."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from tests.emulator.build import build

ARCHES = ["gfx1100", "gfx942", "gfx90a", "gfx1201", "gfx1030"]
Array = np.ndarray[Any, Any]

COPIES = """
typedef u32 V2 __attribute__((ext_vector_type(2)));
typedef u32 V3 __attribute__((ext_vector_type(3)));
typedef u32 V4 __attribute__((ext_vector_type(4)));
typedef struct { u32 a, b, c; } T3;
template <typename T> DEVICE void through_lds(const T* in, T* out, T* lds) {
  u32 t = lane_id();
  lds[t] = in[t];
  barrier();
  out[t] = lds[(t + 65) & 127];
  barrier();
}
template <typename T> DEVICE void through_generic(T* in, T* out) { out[lane_id()] = in[lane_id() ^ 1]; }
KERNEL BLOCK(128) void copies(const char* in, char* out, int which) {
  SHARED __attribute__((aligned(16))) char lds[2048];
  through_lds((const unsigned char*)in, (unsigned char*)out, (unsigned char*)lds);
  through_lds((const unsigned short*)(in + 128), (unsigned short*)(out + 128), (unsigned short*)lds);
  through_lds((const u32*)(in + 384), (u32*)(out + 384), (u32*)lds);
  through_lds((const V2*)(in + 896), (V2*)(out + 896), (V2*)lds);
  through_lds((const T3*)(in + 1920), (T3*)(out + 1920), (T3*)lds);
  through_lds((const V4*)(in + 3456), (V4*)(out + 3456), (V4*)lds);
  *(u32*)(lds + 4 * lane_id()) = lane_id() * 3;
  barrier();
  // a generic pointer: LDS or global memory, decided at run time
  u32* p = which ? (u32*)lds : (u32*)in;
  asm volatile("" : "+v"(p));
  through_generic(p, (u32*)(out + 5504));
}
"""


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("which", [0, 1])
def test_every_width_through_lds_and_generic_pointers(arch: str, which: int) -> None:
    code, listing = build(COPIES, arch)
    data = np.random.default_rng().integers(0, 256, 5504).astype(np.uint8)
    device = Device(arch)
    source, out = device.upload(data), device.malloc(5504 + 512)
    device.launch(device.load(code, listing), "copies", 1, 128, struct.pack("<QQi", source, out, which))
    got = np.frombuffer(device.read_bytes(out, 5504 + 512), np.uint8)
    start = 0
    for size in (1, 2, 4, 8, 12, 16):
        piece = data[start : start + 128 * size].reshape(128, size)
        assert np.array_equal(got[start : start + 128 * size].reshape(128, size), np.roll(piece, -65, 0)), (
            size
        )
        start += 128 * size
    words = np.arange(128, dtype=np.uint32) * 3 if which else data[:512].view(np.uint32)
    assert np.array_equal(got[5504:].view(np.uint32), words[np.arange(128) ^ 1])


SIGNED = """
KERNEL BLOCK(64) void extend(const signed char* a, const short* b, const unsigned char* c, int* out, _Float16* h) {
  u32 t = lane_id();
  out[t] = a[t]; out[64 + t] = b[t]; out[128 + t] = c[t];
  h[2 * t] = (_Float16)a[t] + (_Float16)c[t];
  h[2 * t + 1] = (_Float16)b[t] * (_Float16)0.5f;
}
"""


@pytest.mark.parametrize("arch", ARCHES)
def test_sign_extension_and_half_stores(arch: str) -> None:
    code, listing = build(SIGNED, arch)
    rng = np.random.default_rng()
    a, b = rng.integers(-128, 128, 64).astype(np.int8), rng.integers(-2000, 2000, 64).astype(np.int16)
    c = rng.integers(0, 256, 64).astype(np.uint8)
    device = Device(arch)
    pointers = [device.upload(x) for x in (a, b, c)] + [device.malloc(768), device.malloc(256)]
    device.launch(device.load(code, listing), "extend", 1, 64, struct.pack("<5Q", *pointers))
    assert np.array_equal(device.read(pointers[3], np.int32, 192), np.concatenate([a, b, c]).astype(np.int32))
    half = device.read(pointers[4], np.float16, 128).reshape(64, 2)
    assert np.array_equal(half[:, 0], a.astype(np.float16) + c.astype(np.float16))
    assert np.array_equal(half[:, 1], b.astype(np.float16) * np.float16(0.5))


# operation: (HIP expression on pointer p and value v, NumPy reduction from the start value)
ATOMICS = {
    "add_u32": (
        "u32",
        "__hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s + v.sum(dtype=np.uint32),
    ),
    "add_u64": (
        "u64",
        "__hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s + v.sum(dtype=np.uint64),
    ),
    "sub_u32": (
        "u32",
        "__hip_atomic_fetch_sub(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s - v.sum(dtype=np.uint32),
    ),
    "min_i32": ("int", "__hip_atomic_fetch_min(p, v, __ATOMIC_RELAXED, S)", lambda s, v: min(s, v.min())),
    "max_u32": ("u32", "__hip_atomic_fetch_max(p, v, __ATOMIC_RELAXED, S)", lambda s, v: max(s, v.max())),
    "max_i64": ("long", "__hip_atomic_fetch_max(p, v, __ATOMIC_RELAXED, S)", lambda s, v: max(s, v.max())),
    "and": (
        "u32",
        "__hip_atomic_fetch_and(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s & np.bitwise_and.reduce(v),
    ),
    "or": (
        "u32",
        "__hip_atomic_fetch_or(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s | np.bitwise_or.reduce(v),
    ),
    "xor": (
        "u64",
        "__hip_atomic_fetch_xor(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s ^ np.bitwise_xor.reduce(v),
    ),
    "add_f32": (
        "float",
        "__hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, S)",
        lambda s, v: s + v.sum(dtype=np.float32),
    ),
}
_NUMPY = {"u32": np.uint32, "u64": np.uint64, "int": np.int32, "long": np.int64, "float": np.float32}


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
@pytest.mark.parametrize("lds", [False, True])
def test_atomics(arch: str, lds: bool) -> None:
    kernels, rng = [], np.random.default_rng()
    for name, (type_, expression, _) in ATOMICS.items():
        body = expression.replace("S)", f"__HIP_MEMORY_SCOPE_{'WORKGROUP' if lds else 'AGENT'})")
        place = (
            f"SHARED {type_} cell; if (lane_id() == 0) cell = *q; barrier(); {type_}* p = &cell;"
            if lds
            else f"{type_}* p = q;"
        )
        finish = "barrier(); if (lane_id() == 0) *q = cell;" if lds else ""
        kernels.append(
            f"KERNEL BLOCK(128) void k_{name}({type_}* q, const {type_}* x) {{ {type_} v = x[lane_id()]; {place} {body}; {finish} }}"
        )
    code, listing = build("\n".join(kernels), arch)
    device = Device(arch, threads=1, seed=5)
    module = device.load(code, listing)
    for name, (type_, _, reduce) in ATOMICS.items():
        dtype = np.dtype(_NUMPY[type_])
        values = rng.integers(0, 1 << 20, 128).astype(dtype)
        if dtype.kind != "f":
            values = rng.integers(0, 256, 128 * dtype.itemsize).astype(np.uint8).view(dtype)
        start = np.array([1000], dtype)
        cell, source = device.upload(start), device.upload(values)
        device.launch(module, f"k_{name}", 1, 128, struct.pack("<QQ", cell, source))
        got = device.read(cell, dtype, 1)[0]
        with np.errstate(over="ignore"):
            expected = reduce(start[0], values)
        if dtype.kind == "f":
            assert abs(got - expected) <= 1e-4 * abs(expected), name
        else:
            assert got == expected, name


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_compare_and_swap_hands_out_every_ticket(arch: str) -> None:
    text = """KERNEL BLOCK(128) void tickets(u32* cell, u32* out) {
      u32 old = __hip_atomic_load(cell, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
      while (!__hip_atomic_compare_exchange_strong(cell, &old, old + 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT)) {}
      out[old] = block_id() * 128 + lane_id() + 1;
    }"""
    code, listing = build(text, arch)
    device = Device(arch, threads=2)
    cell, out = device.upload(np.zeros(1, np.uint32)), device.upload(np.zeros(512, np.uint32))
    device.launch(device.load(code, listing), "tickets", 4, 128, struct.pack("<QQ", cell, out))
    assert sorted(device.read(out, np.uint32, 512).tolist()) == list(range(1, 513))


MODES = """
#define MODE(offset, value) "s_setreg_imm32_b32 hwreg(HW_REG_MODE, " #offset ", 2), " #value "\\n\\t"
#define TIMES(value, k) \\
  asm volatile(MODE(0, value) "v_mul_f32 %0, %1, %2\\n\\t" MODE(0, 0) : "=v"(r) : "v"(x), "v"(y)); out[k * 64 + lane_id()] = r;
KERNEL BLOCK(64) void modes(const float* a, const float* b, float* out) {
  float x = a[lane_id()], y = b[lane_id()], r;
  TIMES(0, 0) TIMES(1, 1) TIMES(2, 2) TIMES(3, 3)
  asm volatile(MODE(4, 0) "v_mul_f32 %0, %1, %2\\n\\t" MODE(4, 3) : "=v"(r) : "v"(x), "v"(1e-30f));
  out[256 + lane_id()] = r;
}
"""


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_rounding_and_denormal_modes(arch: str) -> None:
    """MODE bits 0-1 round f32 to even, up, down, to zero (RDNA3 3.5.1); bits 4-5 zero flush f32 denormals."""
    code, listing = build(MODES, arch)
    rng = np.random.default_rng()
    a, b = rng.standard_normal(64).astype(np.float32), rng.standard_normal(64).astype(np.float32)
    a[:32] *= np.float32(1e-10)
    device = Device(arch)
    pointers = [device.upload(a), device.upload(b), device.malloc(5 * 256)]
    device.launch(device.load(code, listing), "modes", 1, 64, struct.pack("<QQQ", *pointers))
    got = device.read(pointers[2], np.float32, 320).reshape(5, 64)
    exact = a.astype(np.float64) * b.astype(np.float64)
    near = exact.astype(np.float32)
    up = np.where(near.astype(np.float64) < exact, np.nextafter(near, np.float32(np.inf)), near)
    down = np.where(near.astype(np.float64) > exact, np.nextafter(near, np.float32(-np.inf)), near)
    for found, expected in zip(got, (near, up, down, np.where(exact > 0, down, up)), strict=False):
        assert np.array_equal(found, expected)
    tiny = (a.astype(np.float64) * np.float64(np.float32(1e-30))).astype(np.float32)
    assert np.array_equal(got[4], np.where(np.abs(tiny) < np.float32(2.0**-126), np.float32(0) * tiny, tiny))


def test_output_modifiers_and_packed_selects() -> None:
    text = """KERNEL BLOCK(64) void mods(const float* a, const u32* h, float* out, u32* packed) {
      float x = a[lane_id()], r; u32 p = h[lane_id()], q;
      asm volatile("v_add_f32 %0, %1, 0.5 clamp" : "=v"(r) : "v"(x)); out[lane_id()] = r;
      asm volatile("v_mul_f32 %0, -|%1|, 2.0 mul:4" : "=v"(r) : "v"(x)); out[64 + lane_id()] = r;
      asm volatile("v_add_f32 %0, %1, %1 div:2" : "=v"(r) : "v"(x)); out[128 + lane_id()] = r;
      asm volatile("v_pk_add_f16 %0, %1, %1 op_sel:[1,0] op_sel_hi:[0,1] neg_lo:[1,0] neg_hi:[0,1]" : "=v"(q) : "v"(p)); packed[lane_id()] = q;
      asm volatile("v_pk_mul_f16 %0, %1, 2.0 op_sel_hi:[1,0] clamp" : "=v"(q) : "v"(p)); packed[64 + lane_id()] = q;
      asm volatile("v_fma_mixlo_f16 %0, %1, %1, 1.0 op_sel:[1,0,0] op_sel_hi:[1,1,0]" : "=v"(q) : "v"(p)); packed[128 + lane_id()] = q & 0xffff;
    }"""
    for arch in ("gfx1100", "gfx942"):
        code, listing = build(text, arch)
        rng = np.random.default_rng()
        a, h = rng.standard_normal(64).astype(np.float32), rng.standard_normal((64, 2)).astype(np.float16)
        device = Device(arch)
        pointers = [device.upload(a), device.upload(h), device.malloc(768), device.malloc(768)]
        device.launch(device.load(code, listing), "mods", 1, 64, struct.pack("<4Q", *pointers))
        out = device.read(pointers[2], np.float32, 192).reshape(3, 64)
        assert np.array_equal(out[0], np.clip(a + np.float32(0.5), 0, 1))
        assert np.array_equal(out[1], -np.abs(a) * 8)
        assert np.array_equal(out[2], a)
        packed = device.read_bytes(pointers[3], 768)
        pairs = np.frombuffer(packed[:512], np.float16).reshape(2, 64, 2)
        assert np.array_equal(pairs[0], np.stack([h[:, 0] - h[:, 1], h[:, 0] - h[:, 1]], 1))
        assert np.array_equal(pairs[1], np.clip(h * np.float16(2), 0, 1))
        mixed = np.frombuffer(packed[512:], np.uint32).astype(np.uint16).view(np.float16)
        assert np.array_equal(
            mixed, (h[:, 1].astype(np.float64) * h[:, 0] + 1).astype(np.float32).astype(np.float16)
        )
