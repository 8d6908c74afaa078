# ruff: noqa: E501 (C text and rows of cases are not broken)
"""WMMA and MFMA tiles against float64 products, with the operand layouts of the ISA documents."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from tests.emulator.build import build

Array = np.ndarray[Any, Any]


def run(
    arch: str,
    builtin: str,
    vectors: tuple[str, str, str],
    a: Array,
    b: Array,
    c: Array,
    result_bytes: int,
    tail: str = "",
) -> bytes:
    """Launch one wave that feeds per-lane registers to a builtin; a, b, c are [lane, bytes]."""
    wave = a.shape[0]
    types = ""
    for i, vector in enumerate(vectors):
        element, _, count = vector.rpartition("x")
        wide_type = f" __attribute__((ext_vector_type({count})))" if count != "1" else ""
        types += f"typedef {element} V{i}{wide_type}; "
    text = f"""
    typedef _Float16 half; typedef short i16; typedef int i32;
    {types}
    KERNEL BLOCK({wave}) void tile(const V0* a, const V1* b, const V2* c, V2* d) {{
      u32 t = lane_id();
      d[t] = {builtin.replace("A", "a[t]").replace("B", "b[t]").replace("C", "c[t]")};
    }}"""
    code, listing = build(text, arch)
    device = Device(arch)
    pointers = [device.upload(np.ascontiguousarray(x)) for x in (a, b, c)] + [
        device.malloc(wave * result_bytes)
    ]
    device.launch(device.load(code, listing), "tile", 1, wave, struct.pack("<QQQQ", *pointers))
    return device.read_bytes(pointers[3], wave * result_bytes)


def bf16(x: Array) -> Array:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def wide(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def operands(rng: np.random.Generator, kind: str, rows: int, k: int) -> tuple[Array, Array]:
    """(stored, float64 value) of a random [rows, k] operand."""
    if kind == "i8":
        x = rng.integers(-128, 128, (rows, k)).astype(np.int8)
        return x, x.astype(np.float64)
    x = rng.standard_normal((rows, k))
    if kind == "bf16":
        return bf16(x), wide(bf16(x))
    stored = x.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])
    return stored, stored.astype(np.float64)


def packed(x: Array, kind: str) -> Array:
    """Bytes of an integer operand; two 4-bit elements share one."""
    if kind != "i4":
        return x.astype(np.uint8)
    return ((x[:, 0::2] & 15) | (x[:, 1::2] & 15) << 4).astype(np.uint8)


@pytest.mark.parametrize("kind", ["f16", "bf16", "u8", "i8", "i4"])
def test_wmma_gfx11(kind: str) -> None:
    """RDNA3 7.9: lane l holds row (column) l mod 16 of A (B); result register r of lane l is row 2 r + l /
    16."""
    rng = np.random.default_rng()
    lanes = np.arange(32)
    if kind in ("u8", "i8", "i4"):
        lo, hi = {"u8": (0, 256), "i8": (-128, 128), "i4": (-8, 8)}[kind]
        a, b = rng.integers(lo, hi, (16, 16)), rng.integers(lo, hi, (16, 16))
        c = rng.integers(-1000, 1000, (16, 16)).astype(np.int32)
        sign = "false" if kind == "u8" else "true"
        builtin = f"__builtin_amdgcn_wmma_i32_16x16x16_iu{4 if kind == 'i4' else 8}_w32({sign}, A, {sign}, B, C, false)"
        vectors = ("intx2", "intx2", "intx8") if kind == "i4" else ("intx4", "intx4", "intx8")
        sa, sb = packed(a, kind), packed(b, kind)
    else:
        (sa, a), (sb, b) = operands(rng, kind, 16, 16), operands(rng, kind, 16, 16)
        c = rng.standard_normal((16, 16)).astype(np.float32)
        builtin = f"__builtin_amdgcn_wmma_f32_16x16x16_{kind}_w32(A, B, C)"
        vectors = ("halfx16", "halfx16", "floatx8") if kind == "f16" else ("i16x16", "i16x16", "floatx8")
    registers = np.stack([c[2 * r + lanes // 16, lanes % 16] for r in range(8)], 1)
    raw = run("gfx1100", builtin, vectors, sa[lanes % 16], sb[lanes % 16], registers, 32)
    got = np.frombuffer(raw, c.dtype).reshape(32, 8)
    d = a.astype(np.float64) @ b.astype(np.float64).T + c
    expected = np.stack([d[2 * r + lanes // 16, lanes % 16] for r in range(8)], 1)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["f16", "i8"])
def test_wmma_gfx12(kind: str) -> None:
    """RDNA4 7.9: K is split between the halves of the wave; result register r of lane l is row r + 8 (l /
    16)."""
    rng = np.random.default_rng()
    lanes = np.arange(32)
    (sa, a), (sb, b) = operands(rng, kind, 16, 16), operands(rng, kind, 16, 16)
    if kind == "f16":
        c: Array = rng.standard_normal((16, 16)).astype(np.float32)
        builtin, vectors = (
            "__builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(A, B, C)",
            ("halfx8", "halfx8", "floatx8"),
        )
    else:
        c = rng.integers(-1000, 1000, (16, 16)).astype(np.int32)
        builtin, vectors = (
            "__builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, A, true, B, C, false)",
            ("intx2", "intx2", "intx8"),
        )
    halves = [s.reshape(16, 2, 8)[lanes % 16, lanes // 16] for s in (sa, sb)]
    registers = np.stack([c[r + 8 * (lanes // 16), lanes % 16] for r in range(8)], 1)
    raw = run("gfx1201", builtin, vectors, halves[0], halves[1], registers, 32)
    d = a @ b.T + c
    expected = np.stack([d[r + 8 * (lanes // 16), lanes % 16] for r in range(8)], 1)
    np.testing.assert_allclose(np.frombuffer(raw, c.dtype).reshape(32, 8), expected, rtol=1e-6, atol=1e-6)


# name: (size, blocks, elements a lane holds, kind, vector type of A and B, chips)
MFMA = {
    "f32_16x16x16f16": (16, 1, 4, "f16", "halfx4", "gfx90a gfx942"),
    "f32_32x32x8f16": (32, 1, 4, "f16", "halfx4", "gfx942"),
    "f32_32x32x4f16": (32, 2, 4, "f16", "halfx4", "gfx942"),
    "f32_16x16x4f16": (16, 4, 4, "f16", "halfx4", "gfx942"),
    "f32_4x4x4f16": (4, 16, 4, "f16", "halfx4", "gfx942"),
    "f32_16x16x16bf16_1k": (16, 1, 4, "bf16", "i16x4", "gfx90a gfx942"),
    "f32_32x32x8bf16_1k": (32, 1, 4, "bf16", "i16x4", "gfx942"),
    "f32_16x16x4f32": (16, 1, 1, "f32", "floatx1", "gfx942"),
    "f32_32x32x2f32": (32, 1, 1, "f32", "floatx1", "gfx942"),
    "f32_32x32x1f32": (32, 2, 1, "f32", "floatx1", "gfx942"),
    "i32_16x16x16i8": (16, 1, 4, "i8", "intx1", "gfx90a"),
    "i32_16x16x32_i8": (16, 1, 8, "i8", "longx1", "gfx942"),
    "i32_32x32x16_i8": (32, 1, 8, "i8", "longx1", "gfx942"),
    "f64_16x16x4f64": (16, 1, 1, "f64", "doublex1", "gfx90a gfx942"),
}


@pytest.mark.parametrize("name", MFMA)
def test_mfma(name: str) -> None:
    """CDNA3 7.1.4: lane l holds row l mod M; groups of lanes hold consecutive runs of K, or further
    blocks."""
    size, blocks, held, kind, vector, chips = MFMA[name]
    rng = np.random.default_rng()
    lanes = np.arange(64)
    groups = 64 // (size * blocks)
    k = held * groups
    stored, values = zip(*(operands(rng, kind, blocks * size, k) for _ in range(2)), strict=True)
    group, block = lanes // size % groups, lanes // (size * groups)
    registers = [s.reshape(blocks, size, groups, held)[block, lanes % size, group] for s in stored]
    count = {32: 16 * blocks, 16: 4 * blocks, 4: 4}[size]
    dtype = np.float64 if kind == "f64" else np.int32 if kind == "i8" else np.float32
    c = (rng.standard_normal((blocks, size, size)) * 10).astype(dtype)
    r = np.arange(count)
    if size == 32:
        where = [
            (r // 16)[None],
            8 * (r % 16 // 4)[None] + 4 * (lanes // 32)[:, None] + (r % 4)[None],
            (lanes % 32)[:, None],
        ]
    elif size == 16 and kind == "f64":
        where = [np.zeros((1, 1), int), (lanes // 16)[:, None] + 4 * r[None], (lanes % 16)[:, None]]
    elif size == 16:
        where = [(r // 4)[None], 4 * (lanes // 16)[:, None] + (r % 4)[None], (lanes % 16)[:, None]]
    else:
        where = [(lanes // 4)[:, None], r[None], (lanes % 4)[:, None]]
    index = tuple(np.broadcast_arrays(*where))
    product = np.einsum(
        "bik,bjk->bij", values[0].reshape(blocks, size, k), values[1].reshape(blocks, size, k)
    )
    expected = (product + c)[index]
    element = {"f64": "double", "i8": "int"}.get(kind, "float")
    for arch in chips.split():
        builtin = f"__builtin_amdgcn_mfma_{name}(A, B, C, 0, 0, 0)"
        raw = run(
            arch,
            builtin,
            (vector, vector, f"{element}x{count}"),
            registers[0],
            registers[1],
            c[index],
            count * np.dtype(dtype).itemsize,
        )
        np.testing.assert_allclose(
            np.frombuffer(raw, dtype).reshape(64, count), expected, rtol=2e-6, atol=1e-5
        )


@pytest.mark.parametrize("high", [False, True])
def test_wmma_gfx11_half_results(high: bool) -> None:
    """The 16-bit result fills one half of each register (OPSEL chooses), the other half keeps what it held."""
    rng = np.random.default_rng()
    lanes = np.arange(32)
    (sa, a), (sb, b) = operands(rng, "f16", 16, 16), operands(rng, "f16", 16, 16)
    c = rng.standard_normal((16, 16)).astype(np.float16)
    registers = np.full((32, 8, 2), 7, np.float16)
    registers[:, :, int(high)] = np.stack([c[2 * r + lanes // 16, lanes % 16] for r in range(8)], 1)
    builtin = f"__builtin_amdgcn_wmma_f16_16x16x16_f16_tied_w32(A, B, C, {str(high).lower()})"
    vectors = ("halfx16", "halfx16", "halfx16")
    raw = run("gfx1100", builtin, vectors, sa[lanes % 16], sb[lanes % 16], registers.reshape(32, 16), 32)
    got = np.frombuffer(raw, np.float16).reshape(32, 8, 2)
    d = a @ b.T + c
    expected = np.stack([d[2 * r + lanes // 16, lanes % 16] for r in range(8)], 1)
    np.testing.assert_allclose(got[:, :, int(high)], expected.astype(np.float16), rtol=1e-3)
    assert (got[:, :, 1 - int(high)] == 7).all()


def fp8(codes: Array, mantissa: int, bias: int, fnuz: bool) -> Array:
    """Values of 8-bit floats, from their definition (OCP OFP8, and the FNUZ forms of gfx942)."""
    exponent = (codes & 0x7F) >> mantissa
    fraction = (codes & ((1 << mantissa) - 1)) / (1 << mantissa)
    value = np.where(
        exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent.astype(float) - bias)
    )
    value = np.where(codes & 0x80, -value, value)
    if fnuz:
        return np.where(codes == 0x80, np.nan, value)
    top = (codes & 0x7F) == 0x7F if mantissa == 3 else (exponent == 31) & (fraction != 0)
    infinite = (mantissa == 2) & (exponent == 31) & (fraction == 0)
    return np.where(top, np.nan, np.where(infinite, np.copysign(np.inf, value), value))


@pytest.mark.parametrize("kinds", [("fp8", "fp8"), ("bf8", "fp8")])
def test_mfma_fp8_gfx942(kinds: tuple[str, str]) -> None:
    rng = np.random.default_rng()
    lanes = np.arange(64)
    values, registers = [], []
    for kind in kinds:
        codes = rng.integers(0, 256, (16, 32))
        codes[codes == 0x80] = 0
        values.append(fp8(codes, 3, 8, True) if kind == "fp8" else fp8(codes, 2, 16, True))
        registers.append(codes.astype(np.uint8).reshape(16, 4, 8)[lanes % 16, lanes // 16])
    c = rng.standard_normal((16, 16)).astype(np.float32)
    index = (4 * (lanes // 16)[:, None] + np.arange(4)[None], (lanes % 16)[:, None])
    builtin = f"__builtin_amdgcn_mfma_f32_16x16x32_{kinds[0]}_{kinds[1]}(A, B, C, 0, 0, 0)"
    raw = run("gfx942", builtin, ("longx1", "longx1", "floatx4"), *registers, c[index], 16)
    expected = (values[0] @ values[1].T + c)[index]
    np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(64, 4), expected, rtol=1e-6, atol=1e-5)


def test_wmma_fp8_gfx12() -> None:
    rng = np.random.default_rng()
    lanes = np.arange(32)
    codes = [rng.integers(0, 0x7F, (16, 16)), rng.integers(0, 0x7C, (16, 16))]
    a, b = fp8(codes[0], 3, 7, False), fp8(codes[1], 2, 15, False)
    c = rng.standard_normal((16, 16)).astype(np.float32)
    held = [x.astype(np.uint8).reshape(16, 2, 8)[lanes % 16, lanes // 16] for x in codes]
    index = (np.arange(8)[None] + 8 * (lanes // 16)[:, None], (lanes % 16)[:, None])
    builtin = "__builtin_amdgcn_wmma_f32_16x16x16_fp8_bf8_w32_gfx12(A, B, C)"
    raw = run("gfx1201", builtin, ("intx2", "intx2", "floatx8"), *held, c[index], 32)
    np.testing.assert_allclose(
        np.frombuffer(raw, np.float32).reshape(32, 8), (a @ b.T + c)[index], rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize(("name", "size"), [("16x16x32", 16), ("32x32x16", 32)])
def test_mfma_f16_gfx950(name: str, size: int) -> None:
    """The doubled K of gfx950: eight halves a lane."""
    rng = np.random.default_rng()
    lanes = np.arange(64)
    groups = 64 // size
    (sa, a), (sb, b) = operands(rng, "f16", size, 8 * groups), operands(rng, "f16", size, 8 * groups)
    registers = [s.reshape(size, groups, 8)[lanes % size, lanes // size] for s in (sa, sb)]
    r = np.arange(4 if size == 16 else 16)
    row = (
        4 * (lanes // 16)[:, None] + r[None]
        if size == 16
        else 8 * (r // 4)[None] + 4 * (lanes // 32)[:, None] + (r % 4)[None]
    )
    index = (row, (lanes % size)[:, None])
    c = rng.standard_normal((size, size)).astype(np.float32)
    raw = run(
        "gfx950",
        f"__builtin_amdgcn_mfma_f32_{name}_f16(A, B, C, 0, 0, 0)",
        ("halfx8", "halfx8", f"floatx{len(r)}"),
        *registers,
        c[index],
        4 * len(r),
    )
    np.testing.assert_allclose(
        np.frombuffer(raw, np.float32).reshape(64, -1), (a @ b.T + c)[index], rtol=2e-6, atol=1e-5
    )
