# ruff: noqa: E501 (rows of cases are not broken)
"""More vector instructions in NumPy: 16-bit forms, saturation, accumulating forms, packed singles, late additions.

The notation is that of valu_cases.py. ``families`` is a prefix of the chips that have the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.emulator.valu_cases import (
    Array,
    Case,
    classify,
    dot4,
    dot8,
    f32_to_int,
    fma16,
    fma32,
    fract,
    med3,
    number_max,
    number_min,
    pack,
    packed,
    shift,
    snorm,
    unorm,
)

__all__ = ["MORE"]


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Exact products and sums of rationals, rounded once."""

    def one(x: float, y: float, z: float) -> float:
        if np.isfinite(x) and np.isfinite(y) and not np.isfinite(z):
            return z
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z)):
            return float(np.float64(x) * np.float64(y) + np.float64(z))
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if exact == 0:
            return float(np.float64(x) * np.float64(y) + np.float64(z))
        try:
            return float(exact)
        except OverflowError:
            return float(np.inf) if exact > 0 else float(-np.inf)

    return np.array([one(*t) for t in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)])


def saturated(function: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    def evaluate(*arrays: Array) -> Array:
        info = np.iinfo(dtype)
        return np.clip(function(*(a.astype(np.int64) for a in arrays)), info.min, info.max).astype(dtype)

    return evaluate


def packed_saturated(function: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    inner = saturated(function, dtype)
    return lambda *arrays: np.ascontiguousarray(inner(*(a.view(dtype) for a in arrays))).view(np.uint32)


def legacy(a: Array, b: Array) -> Array:
    return np.where((a == 0) | (b == 0), np.float32(0), a * b).astype(np.float32)


def minimum(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), number_min(a, b)).astype(np.float32)


def maximum(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), number_max(a, b)).astype(np.float32)


def halves(x: Array) -> tuple[Array, Array]:
    pair = x.view(np.float16).reshape(-1, 2).astype(np.float64)
    return pair[:, 0], pair[:, 1]


def bf16_pair(x: Array) -> tuple[Array, Array]:
    words = x.view(np.uint16).reshape(-1, 2)
    wide = (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return wide[:, 0], wide[:, 1]


def to_bf16(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), (bits >> np.uint64(16)) | np.uint64(0x40), rounded).astype(np.uint16)


def dot16(signed: bool) -> Callable[[Array, Array, Array], Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        kind = np.int16 if signed else np.uint16
        x, y = a.view(kind).reshape(-1, 2).astype(np.int64), b.view(kind).reshape(-1, 2).astype(np.int64)
        return ((x * y).sum(-1) + c.astype(np.int64)).astype(np.uint64).astype(np.uint32)

    return evaluate


def as_i32(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arrays: function(*arrays).view(np.int32)


def dot_saturated(
    function: Callable[[Array, Array, Array], Array], signed: bool
) -> Callable[[Array, Array, Array], Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        product = function(a, b, np.zeros_like(c)).astype(np.int64)
        lo, hi = (-(1 << 31), (1 << 31) - 1) if signed else (0, (1 << 32) - 1)
        return np.clip(product + c.astype(np.int64), lo, hi).astype(np.int32 if signed else np.uint32)

    return evaluate


def cube_id(x: Array, y: Array, z: Array) -> Array:
    ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
    zid, yid, xid = np.where(z < 0, 5, 4), np.where(y < 0, 3, 2), np.where(x < 0, 1, 0)
    return np.where((az >= ax) & (az >= ay), zid, np.where(ay >= ax, yid, xid)).astype(np.float32)


def pk_u8(a: Array, b: Array, c: Array) -> Array:
    value = f32_to_int(np.rint(a), 0, 255, np.uint32)
    at = (b & 3) * np.uint32(8)
    return (c & ~(np.uint32(255) << at)) | (value << at)


def mad64(signed: bool) -> Callable[..., Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        values = [
            (x * y + z) & ((1 << 64) - 1) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
        found = np.array(values, np.uint64)
        return found.view(np.int64) if signed else found

    return evaluate


def bitop3(truth: int) -> Callable[[Array, Array, Array], Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        out = np.zeros_like(a)
        for i in range(8):
            if truth >> i & 1:
                out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return out

    return evaluate


def _sixteen() -> list[Case]:
    h, u, s = "f16", "u16", "i16"
    old, new = "gfx9", "gfx11"
    rows = [
        Case("v_subrev_f16", h, (h, h), lambda a, b: b - a),
        Case("v_fract_f16", h, (h,), fract),
        Case(
            "v_sin_f16",
            h,
            ("half turns",),
            lambda a: np.sin(2 * np.pi * (a.astype(np.float64) % 1)).astype(np.float16),
            4,
        ),
        Case(
            "v_cos_f16",
            h,
            ("half turns",),
            lambda a: np.cos(2 * np.pi * (a.astype(np.float64) % 1)).astype(np.float16),
            4,
        ),
        Case(
            "v_ldexp_f16",
            h,
            (h, "small16"),
            lambda a, b: np.ldexp(a.astype(np.float64), b).astype(np.float16),
        ),
        Case("v_cvt_norm_i16_f16", s, (h,), snorm),
        Case("v_cvt_norm_u16_f16", u, (h,), unorm),
        Case("v_cvt_pk_norm_i16_f16", "u32", (h, h), lambda a, b: pack(snorm(a), snorm(b))),
        Case("v_cvt_pk_norm_u16_f16", "u32", (h, h), lambda a, b: pack(unorm(a), unorm(b))),
        Case("v_fmac_f16", h, (h, h, "acc16"), fma16, families=new),
        Case("v_mac_f16", h, (h, h, "acc16"), lambda a, b, c: a * b + c, families="gfx9"),
        Case("v_pk_fmac_f16", "ph", ("ph", "ph", "accph"), packed(fma16, np.float16)),
        Case("v_mad_f16", h, (h, h, h), lambda a, b, c: a * b + c, families=old),
        Case("v_div_fixup_f16", h, (h, h, h), div_fixup16),
        Case("v_min3_f16", h, (h, h, h), lambda a, b, c: number_min(number_min(a, b), c)),
        Case("v_max3_f16", h, (h, h, h), lambda a, b, c: number_max(number_max(a, b), c)),
        Case("v_med3_f16", h, (h, h, h), med3),
        Case("v_maxmin_f16", h, (h, h, h), lambda a, b, c: number_min(number_max(a, b), c), families=new),
        Case("v_minmax_f16", h, (h, h, h), lambda a, b, c: number_max(number_min(a, b), c), families=new),
        Case(
            "v_dot2_f16_f16",
            h,
            ("ph", "ph", h),
            lambda a, b, c: (
                halves(a)[0] * halves(b)[0] + halves(a)[1] * halves(b)[1] + c.astype(np.float64)
            ).astype(np.float16),
            1,
            families=new,
        ),
        Case(
            "v_fma_mixlo_f16",
            h,
            (h, h, "f32"),
            lambda a, b, c: fma32(a.astype(np.float32), b.astype(np.float32), c).astype(np.float16),
            operands=" op_sel_hi:[1,1,0]",
        ),
        Case(
            "v_fma_mixhi_f16",
            "hi16",
            (h, h, "f32"),
            lambda a, b, c: fma32(a.astype(np.float32), b.astype(np.float32), c).astype(np.float16),
            operands=" op_sel_hi:[1,1,0]",
        ),
        Case("v_cmp_class_f16", "m", (h, u), lambda a, b: (b >> classify(a).astype(np.uint16) & 1) != 0),
        Case("v_mad_u16", u, (u, u, u), lambda a, b, c: a * b + c),
        Case("v_mad_i16", s, (s, s, s), lambda a, b, c: a * b + c),
        Case("v_mul_lo_u16", u, (u, u), np.multiply),
        Case("v_lshlrev_b16", u, (u, u), lambda a, b: shift(b, a, "l", 16)),
        Case("v_lshrrev_b16", u, (u, u), lambda a, b: shift(b, a, "r", 16)),
        Case("v_ashrrev_i16", s, (u, s), lambda a, b: shift(b, a, "r", 16)),
        Case("v_add_nc_u16", u, (u, u), np.add),
        Case("v_sub_nc_u16", u, (u, u), np.subtract),
        Case("v_subrev_u16", u, (u, u), lambda a, b: b - a, families=old),
        Case("v_add_nc_i16", s, (s, s), np.add),
        Case("v_sub_nc_i16", s, (s, s), np.subtract),
        Case("v_add_nc_u16", u, (u, u), saturated(np.add, np.uint16), operands=" clamp"),
        Case("v_sub_nc_u16", u, (u, u), saturated(np.subtract, np.uint16), operands=" clamp"),
        Case("v_add_nc_i16", s, (s, s), saturated(np.add, np.int16), operands=" clamp"),
        Case("v_sub_nc_i16", s, (s, s), saturated(np.subtract, np.int16), operands=" clamp"),
        Case("v_mov_b16", u, (u,), lambda a: a, families=new),
        Case("v_not_b16", u, (u,), lambda a: ~a, families=new),
        Case("v_cvt_i32_i16", "i32", (s,), lambda a: a.astype(np.int32), families=new),
        Case("v_cvt_u32_u16", "u32", (u,), lambda a: a.astype(np.uint32), families=new),
        Case("v_cndmask_b16", u, (u, u, "carry"), lambda a, b, c: np.where(c & 1, b, a), families=new),
        Case("v_and_b16", u, (u, u), np.bitwise_and, families=new),
        Case("v_or_b16", u, (u, u), np.bitwise_or, families=new),
        Case("v_xor_b16", u, (u, u), np.bitwise_xor, families=new),
        Case(
            "v_dot2_bf16_bf16",
            u,
            ("bf", "bf", "bf1"),
            lambda a, b, c: to_bf16(
                (
                    bf16_pair(a)[0] * bf16_pair(b)[0]
                    + bf16_pair(a)[1] * bf16_pair(b)[1]
                    + (c.astype(np.uint32) << np.uint32(16)).view(np.float32)
                ).astype(np.float32)
            ),
            families=new,
        ),
    ]
    for kind, dtype in ((u, np.uint16), (s, np.int16)):
        del dtype
        rows += [
            Case(f"v_min_{kind}", kind, (kind, kind), np.minimum),
            Case(f"v_max_{kind}", kind, (kind, kind), np.maximum),
            Case(f"v_min3_{kind}", kind, (kind,) * 3, lambda a, b, c: np.minimum(np.minimum(a, b), c)),
            Case(f"v_max3_{kind}", kind, (kind,) * 3, lambda a, b, c: np.maximum(np.maximum(a, b), c)),
            Case(f"v_med3_{kind}", kind, (kind,) * 3, lambda a, b, c: np.sort(np.stack([a, b, c]), 0)[1]),
        ]
    return rows


def div_fixup16(a: Array, b: Array, c: Array) -> Array:
    """The quotient's sign and the special cases of division (RDNA3 16.12 V_DIV_FIXUP_F16)."""
    sign = np.signbit(b) ^ np.signbit(c)
    magnitude = np.where(np.isfinite(a), np.abs(a), np.float16(np.inf))
    magnitude = np.where(np.isinf(b) | (c == 0), np.float16(0), magnitude)
    magnitude = np.where((b == 0) | np.isinf(c), np.float16(np.inf), magnitude)
    wrong = ((b == 0) & (c == 0)) | (np.isinf(b) & np.isinf(c)) | np.isnan(b) | np.isnan(c)
    return np.where(wrong, np.float16(np.nan), np.where(sign, -magnitude, magnitude)).astype(np.float16)


def _wide() -> list[Case]:
    f, d, new, old = "f32", "f64", "gfx11", "gfx9"
    f2, f3, u2, u3, i2 = (f,) * 2, (f,) * 3, ("u32",) * 2, ("u32",) * 3, ("i32",) * 2
    return [
        Case("v_mul_dx9_zero_f32", f, f2, legacy, families=new),
        Case("v_mul_legacy_f32", f, f2, legacy, families=old),
        Case(
            "v_fmac_dx9_zero_f32",
            f,
            (f, f, "acc"),
            lambda a, b, c: np.where((a == 0) | (b == 0), c, fma32(a, b, c)).astype(np.float32),
            families=new,
        ),
        Case(
            "v_fma_dx9_zero_f32",
            f,
            f3,
            lambda a, b, c: np.where((a == 0) | (b == 0), c, fma32(a, b, c)).astype(np.float32),
            families=new,
        ),
        Case("v_minmax_f32", f, f3, lambda a, b, c: number_max(number_min(a, b), c), families=new),
        Case("v_cubeid_f32", f, f3, cube_id, families=new),
        Case("v_minimum_f32", f, f2, minimum, families="gfx12"),
        Case("v_maximum_f32", f, f2, maximum, families="gfx12"),
        Case("v_minimum3_f32", f, f3, lambda a, b, c: minimum(minimum(a, b), c), families="gfx12"),
        Case("v_maximum3_f32", f, f3, lambda a, b, c: maximum(maximum(a, b), c), families="gfx12"),
        Case("v_fma_f64", d, (d,) * 3, fma64),
        Case("v_fmac_f64", d, (d, d, "acc64"), fma64, families=old),
        Case("v_mov_b64", "u64", ("u64",), lambda a: a, families="gfx94"),
        Case("v_mad_u64_u32", "u64", ("u32", "u32", "u64"), mad64(False)),
        Case("v_mad_i64_i32", "i64", ("i32", "i32", "i64"), mad64(True)),
        Case("v_mad_u32_u16", "u32", ("u16", "u16", "u32"), lambda a, b, c: a.astype(np.uint32) * b + c),
        Case(
            "v_mad_i32_i16",
            "i32",
            ("i16", "i16", "i32"),
            lambda a, b, c: (a.astype(np.int64) * b + c).astype(np.uint64).astype(np.uint32).view(np.int32),
        ),
        Case(
            "v_maxmin_i32", "i32", ("i32",) * 3, lambda a, b, c: np.minimum(np.maximum(a, b), c), families=new
        ),
        Case("v_maxmin_u32", "u32", u3, lambda a, b, c: np.minimum(np.maximum(a, b), c), families=new),
        Case("v_minmax_u32", "u32", u3, lambda a, b, c: np.maximum(np.minimum(a, b), c), families=new),
        Case(
            "v_cvt_pk_i16_f32",
            "u32",
            f2,
            lambda a, b: pack(f32_to_int(a, -32768, 32767, np.int16), f32_to_int(b, -32768, 32767, np.int16)),
            families=new,
        ),
        Case(
            "v_cvt_pk_u16_f32",
            "u32",
            f2,
            lambda a, b: pack(f32_to_int(a, 0, 65535, np.uint16), f32_to_int(b, 0, 65535, np.uint16)),
            families=new,
        ),
        Case("v_cvt_pk_u8_f32", "u32", (f, "u32", "u32"), pk_u8),
        Case("v_cvt_pk_bf16_f32", "u32", f2, lambda a, b: pack(to_bf16(a), to_bf16(b)), families="gfx950"),
        Case(
            "v_cvt_pk_f16_f32",
            "u32",
            f2,
            lambda a, b: pack(a.astype(np.float16), b.astype(np.float16)),
            families="gfx950",
        ),
        Case(
            "v_cvt_f32_bf16",
            f,
            ("u16",),
            lambda a: (a.astype(np.uint32) << np.uint32(16)).view(np.float32),
            families="gfx950",
        ),
        Case("v_bitop3_b32", "u32", u3, bitop3(0x6B), families="gfx950", operands=" bitop3:0x6b"),
        Case(
            "v_prng_b32",
            "u32",
            ("u32",),
            lambda a: np.where(a >> np.uint32(31), (a << np.uint32(1)) ^ np.uint32(0xC5), a << np.uint32(1)),
            families="gfx950",
        ),
        Case("v_add_nc_u32", "u32", u2, saturated(np.add, np.uint32), operands=" clamp"),
        Case("v_sub_nc_u32", "u32", u2, saturated(np.subtract, np.uint32), operands=" clamp"),
        Case("v_subrev_nc_u32", "u32", u2, saturated(lambda a, b: b - a, np.uint32), operands=" clamp"),
        Case("v_add_nc_i32", "i32", i2, saturated(np.add, np.int32), operands=" clamp"),
        Case("v_sub_nc_i32", "i32", i2, saturated(np.subtract, np.int32), operands=" clamp"),
        Case(
            "v_mad_i32_i24",
            "i32",
            ("u32", "u32", "i32"),
            saturated(lambda x, y, z: _i24(x) * _i24(y) + z, np.int32),
            operands=" clamp",
        ),
        Case(
            "v_mad_u32_u24",
            "u32",
            u3,
            saturated(lambda x, y, z: (x & 0xFFFFFF) * (y & 0xFFFFFF) + z, np.uint32),
            operands=" clamp",
        ),
    ]


def _i24(x: Array) -> Array:
    low = x & 0xFFFFFF
    return np.where(low >> 23, low - (1 << 24), low)


def _dots() -> list[Case]:
    u, f = ("u32", "u32", "i32"), "f32"
    new, old = "gfx11", "gfx9"

    def add2(a: Array, b: Array, c: Array) -> Array:
        (a0, a1), (b0, b1) = halves(a), halves(b)
        return (a0 * b0 + a1 * b1 + c.astype(np.float64)).astype(np.float32)

    def bf(a: Array, b: Array, c: Array) -> Array:
        (a0, a1), (b0, b1) = bf16_pair(a), bf16_pair(b)
        return (a0 * b0 + a1 * b1 + c.astype(np.float64)).astype(np.float32)

    def pk32(g: Callable[..., Array]) -> Callable[..., Array]:
        return lambda *x: np.ascontiguousarray(g(*(v.view(np.float32) for v in x)).astype(np.float32)).view(
            np.uint64
        )

    return [
        Case("v_dot2acc_f32_f16", f, ("ph", "ph", "acc"), add2, 2, families=new),
        Case("v_dot2c_f32_f16", f, ("ph", "ph", "acc"), add2, 2, families="gfx94"),
        Case("v_dot4c_i32_i8", "i32", ("u32", "u32", "accu"), dot4(True, True), families="gfx94"),
        Case("v_dot8c_i32_i4", "i32", ("u32", "u32", "accu"), dot8(True), families="gfx94"),
        Case("v_dot2c_i32_i16", "i32", ("u32", "u32", "accu"), as_i32(dot16(True)), families="gfx94"),
        Case("v_dot2_f32_bf16", f, ("bf", "bf", f), bf, 2, families=new),
        Case("v_dot2_i32_i16", "i32", u, as_i32(dot16(True)), families=old),
        Case("v_dot2_u32_u16", "u32", ("u32",) * 3, dot16(False), families=old),
        Case("v_dot8_i32_i4", "i32", u, dot8(True), families=old),
        Case(
            "v_dot4_i32_iu8",
            "i32",
            u,
            dot_saturated(dot4(True, True), True),
            families=new,
            operands=" neg_lo:[1,1,0] clamp",
        ),
        Case(
            "v_dot8_i32_iu4",
            "i32",
            u,
            dot_saturated(dot8(True), True),
            families=new,
            operands=" neg_lo:[1,1,0] clamp",
        ),
        Case(
            "v_dot4_i32_i8", "i32", u, dot_saturated(dot4(True, True), True), families=old, operands=" clamp"
        ),
        Case("v_dot8_i32_i4", "i32", u, dot_saturated(dot8(True), True), families=old, operands=" clamp"),
        Case(
            "v_dot4_u32_u8", "u32", ("u32",) * 3, dot_saturated(dot4(False, False), False), operands=" clamp"
        ),
        Case("v_dot8_u32_u4", "u32", ("u32",) * 3, dot_saturated(dot8(False), False), operands=" clamp"),
        Case("v_pk_add_f32", "pf", ("pf", "pf"), pk32(np.add), families="gfx9"),
        Case("v_pk_mul_f32", "pf", ("pf", "pf"), pk32(np.multiply), families="gfx9"),
        Case("v_pk_fma_f32", "pf", ("pf", "pf", "pf"), pk32(fma32), families="gfx9"),
        Case("v_pk_add_u16", "u32", ("u32", "u32"), packed_saturated(np.add, np.uint16), operands=" clamp"),
        Case(
            "v_pk_sub_u16", "u32", ("u32", "u32"), packed_saturated(np.subtract, np.uint16), operands=" clamp"
        ),
        Case("v_pk_add_i16", "u32", ("u32", "u32"), packed_saturated(np.add, np.int16), operands=" clamp"),
        Case(
            "v_pk_sub_i16", "u32", ("u32", "u32"), packed_saturated(np.subtract, np.int16), operands=" clamp"
        ),
    ]


MORE = [*_sixteen(), *_wide(), *_dots()]
