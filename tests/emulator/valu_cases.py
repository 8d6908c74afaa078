"""Vector instructions and their meaning in NumPy, written from the ISA documents and not from the emulator.

A case is (mnemonic, result type, source types, function). Functions get arrays of the source types and
return an array of the result type; ``acc`` in the source types is the old destination. Names are those of
gfx11; OLD maps them to gfx9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    name: str
    result: str
    sources: tuple[str, ...]
    function: Callable[..., Array]
    ulps: int = 0
    families: str = "all"
    operands: str = ""


TYPES = {
    "u32": np.uint32,
    "i32": np.int32,
    "f32": np.float32,
    "u64": np.uint64,
    "i64": np.int64,
    "f64": np.float64,
    "u16": np.uint16,
    "i16": np.int16,
    "f16": np.float16,
}


def _u32(x: Any) -> Array:
    return np.asarray(x).astype(np.uint32)


def _sat(x: Array, lo: int, hi: int, dtype: Any) -> Array:
    return np.clip(x, lo, hi).astype(dtype)


def f32_to_int(x: Array, lo: int, hi: int, dtype: Any) -> Array:
    wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    return np.clip(np.trunc(wide), lo, hi).astype(np.int64).astype(dtype)


def flush(x: Array) -> Array:
    tiny = np.abs(x) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), x), x).astype(np.float32)


def number_min(a: Array, b: Array) -> Array:
    less = np.where(a == b, np.signbit(a), a < b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(less, a, b))).astype(a.dtype)


def number_max(a: Array, b: Array) -> Array:
    more = np.where(a == b, ~np.signbit(a), a > b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(more, a, b))).astype(a.dtype)


def med3(a: Array, b: Array, c: Array) -> Array:
    middle = number_max(number_min(a, b), number_min(number_max(a, b), c))
    return np.where(np.isnan(a) | np.isnan(b) | np.isnan(c), number_min(number_min(a, b), c), middle).astype(
        a.dtype
    )


def _sum_to_odd(p: Array, z: Array) -> Array:
    """p + z in float64, rounded to odd where it is inexact (TwoSum): a second rounding then does no harm."""
    s = p + z
    bb = s - p
    error = (p - (s - bb)) + (z - bb)
    bits = s.view(np.int64)
    finite = np.isfinite(s) & (error != 0)
    up = (error > 0) == (s > 0)
    odd = np.where((bits & 1) == 0, np.where(up, bits + 1, bits - 1), bits)
    return np.where(finite, odd.view(np.float64), s)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """f64 products of f32 are exact; one rounding to f32."""
    return _sum_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)).astype(np.float32)


def fma16(a: Array, b: Array, c: Array) -> Array:
    """f64 products of f16 are exact; one rounding to f16 (NumPy rounds long double to f16 twice)."""
    return _sum_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)).astype(np.float16)


def bfe_u32(a: Array, b: Array, c: Array) -> Array:
    start, size = b & 31, c & 31
    return _u32((a.astype(np.uint64) >> start) & ((np.uint64(1) << size.astype(np.uint64)) - np.uint64(1)))


def bfe_i32(a: Array, b: Array, c: Array) -> Array:
    field = bfe_u32(a, b, c).astype(np.int64)
    size = (c & 31).astype(np.int64)
    sign = np.where(size > 0, np.int64(1) << np.maximum(size - 1, 0), 0)
    return np.where(field & sign, field - 2 * sign, field).astype(np.int32)


def perm(a: Array, b: Array, c: Array) -> Array:
    both = a.astype(np.uint64) << np.uint64(32) | b.astype(np.uint64)
    out = np.zeros_like(c)
    for i in range(4):
        s = (c >> np.uint32(8 * i)) & np.uint32(255)
        byte = (both >> (np.minimum(s, 7).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        for k, at in enumerate((15, 31, 47, 63)):
            byte = np.where(s == 8 + k, np.where((both >> np.uint64(at)) & np.uint64(1), 255, 0), byte)
        byte = np.where(s == 12, 0, np.where(s > 12, 255, byte))
        out |= byte.astype(np.uint32) << np.uint32(8 * i)
    return out


def dot4(signed_a: bool, signed_b: bool) -> Callable[[Array, Array, Array], Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        x = a.view(np.int8 if signed_a else np.uint8).astype(np.int64).reshape(-1, 4)
        y = b.view(np.int8 if signed_b else np.uint8).astype(np.int64).reshape(-1, 4)
        return ((x * y).sum(-1) + c.astype(np.int64)).astype(np.uint64).astype(np.uint32).view(np.int32)

    return evaluate


def dot8(signed: bool) -> Callable[[Array, Array, Array], Array]:
    def evaluate(a: Array, b: Array, c: Array) -> Array:
        total = c.astype(np.int64)
        for i in range(8):
            x, y = (a >> np.uint32(4 * i)) & np.uint32(15), (b >> np.uint32(4 * i)) & np.uint32(15)
            x, y = x.astype(np.int64), y.astype(np.int64)
            if signed:
                x, y = np.where(x > 7, x - 16, x), np.where(y > 7, y - 16, y)
            total = total + x * y
        return total.astype(np.uint64).astype(np.uint32).view(np.int32)

    return evaluate


def packed(function: Callable[..., Array], kind: Any) -> Callable[..., Array]:
    def evaluate(*arrays: Array) -> Array:
        return np.ascontiguousarray(function(*(a.view(kind) for a in arrays)).astype(kind)).view(np.uint32)

    return evaluate


def mul24(signed: bool, high: bool) -> Callable[..., Array]:
    def evaluate(a: Array, b: Array) -> Array:
        x, y = a.astype(np.int64) & 0xFFFFFF, b.astype(np.int64) & 0xFFFFFF
        if signed:
            x, y = np.where(x >> 23, x - (1 << 24), x), np.where(y >> 23, y - (1 << 24), y)
        return ((x * y) >> (32 if high else 0)).astype(np.uint64).astype(np.uint32)

    return evaluate


def ffbh(x: Array) -> Array:
    return np.array([0xFFFFFFFF if v == 0 else 32 - int(v).bit_length() for v in x.tolist()], np.uint32)


def ffbh_signed(x: Array) -> Array:
    values = [(v ^ 0xFFFFFFFF) if v >> 31 else v for v in x.view(np.uint32).tolist()]
    return np.array([0xFFFFFFFF if v == 0 else 32 - v.bit_length() for v in values], np.uint32)


def ffbl(x: Array) -> Array:
    return np.array([0xFFFFFFFF if v == 0 else (v & -v).bit_length() - 1 for v in x.tolist()], np.uint32)


def brev(x: Array) -> Array:
    return np.array([int(f"{v:032b}"[::-1], 2) for v in x.tolist()], np.uint32)


def bcnt(a: Array, b: Array) -> Array:
    return _u32(np.array([int(v).bit_count() for v in a.tolist()], np.uint64) + b)


def ldexp(a: Array, b: Array) -> Array:
    return np.ldexp(a.astype(np.float64), np.clip(b, -2000, 2000)).astype(a.dtype)


def frexp_exp(x: Array) -> Array:
    return np.where(np.isfinite(x), np.frexp(x)[1], 0).astype(np.int32)


def frexp_mant(x: Array) -> Array:
    return np.where(np.isfinite(x), np.frexp(x)[0], x).astype(x.dtype)


def fract(x: Array) -> Array:
    limit = {2: np.float16(0.99951172), 4: np.float32(1) - np.float32(2.0**-24), 8: 1 - 2.0**-53}[
        x.dtype.itemsize
    ]
    return number_min((x - np.floor(x)).astype(x.dtype), np.full_like(x, limit))


def sad_u8(a: Array, b: Array) -> Array:
    return np.abs(a.view(np.uint8).astype(np.int64) - b.view(np.uint8)).reshape(-1, 4).sum(-1)


def rtz16(x: Array) -> Array:
    near = x.astype(np.float16)
    over = np.abs(near.astype(np.float64)) > np.abs(x.astype(np.float64))
    return np.where(over, np.nextafter(near, np.float16(0)), near).astype(np.float16)


def pack(lo: Array, hi: Array) -> Array:
    return lo.view(np.uint16).astype(np.uint32) | hi.view(np.uint16).astype(np.uint32) << np.uint32(16)


def alignbit(a: Array, b: Array, c: Array) -> Array:
    return _u32(
        ((a.astype(np.uint64) << np.uint64(32) | b) >> (c & 31).astype(np.uint64)) & np.uint64(0xFFFFFFFF)
    )


def alignbyte(a: Array, b: Array, c: Array) -> Array:
    return _u32(
        ((a.astype(np.uint64) << np.uint64(32) | b) >> ((c & 3) * 8).astype(np.uint64))
        & np.uint64(0xFFFFFFFF)
    )


def shift(x: Array, n: Array, kind: str, bits: int) -> Array:
    n = (n.astype(np.int64) & (bits - 1)).astype(x.dtype)
    return (x << n if kind == "l" else x >> n).astype(x.dtype)


def snorm(x: Array) -> Array:
    return np.rint(np.clip(np.nan_to_num(x.astype(np.float32), nan=0.0), -1, 1) * np.float32(32767)).astype(
        np.int16
    )


def unorm(x: Array) -> Array:
    return np.rint(np.clip(np.nan_to_num(x.astype(np.float32), nan=0.0), 0, 1) * np.float32(65535)).astype(
        np.uint16
    )


def _cases() -> list[Case]:
    f, d, h = "f32", "f64", "f16"
    f2, f3, u2, u3, i2, i3 = (f,) * 2, (f,) * 3, ("u32",) * 2, ("u32",) * 3, ("i32",) * 2, ("i32",) * 3
    inverse = lambda x: np.float32(1) / x  # noqa: E731
    rows = [
        # VOP1
        Case("v_mov_b32", "u32", ("u32",), lambda a: a),
        Case("v_not_b32", "u32", ("u32",), lambda a: ~a),
        Case("v_bfrev_b32", "u32", ("u32",), brev),
        Case("v_clz_i32_u32", "u32", ("u32",), ffbh),
        Case("v_ctz_i32_b32", "u32", ("u32",), ffbl),
        Case("v_cls_i32", "u32", ("i32",), ffbh_signed),
        Case("v_cvt_f32_i32", f, ("i32",), lambda a: a.astype(np.float32)),
        Case("v_cvt_f32_u32", f, ("u32",), lambda a: a.astype(np.float32)),
        Case("v_cvt_u32_f32", "u32", (f,), lambda a: f32_to_int(a, 0, 2**32 - 1, np.uint32)),
        Case("v_cvt_i32_f32", "i32", (f,), lambda a: f32_to_int(a, -(2**31), 2**31 - 1, np.int32)),
        Case(
            "v_cvt_floor_i32_f32",
            "i32",
            (f,),
            lambda a: f32_to_int(np.floor(a), -(2**31), 2**31 - 1, np.int32),
        ),
        Case(
            "v_cvt_nearest_i32_f32",
            "i32",
            (f,),
            lambda a: f32_to_int(np.floor(a + np.float32(0.5)), -(2**31), 2**31 - 1, np.int32),
        ),
        Case("v_cvt_f64_i32", d, ("i32",), lambda a: a.astype(np.float64)),
        Case("v_cvt_f64_u32", d, ("u32",), lambda a: a.astype(np.float64)),
        Case("v_cvt_i32_f64", "i32", (d,), lambda a: f32_to_int(a, -(2**31), 2**31 - 1, np.int32)),
        Case("v_cvt_u32_f64", "u32", (d,), lambda a: f32_to_int(a, 0, 2**32 - 1, np.uint32)),
        Case("v_cvt_f32_f64", f, (d,), lambda a: a.astype(np.float32)),
        Case("v_cvt_f64_f32", d, (f,), lambda a: a.astype(np.float64)),
        Case("v_cvt_f16_f32", h, (f,), lambda a: a.astype(np.float16)),
        Case("v_cvt_f32_f16", f, (h,), lambda a: a.astype(np.float32)),
        Case("v_cvt_f16_u16", h, ("u16",), lambda a: a.astype(np.float16)),
        Case("v_cvt_f16_i16", h, ("i16",), lambda a: a.astype(np.float16)),
        Case("v_cvt_u16_f16", "u16", (h,), lambda a: f32_to_int(a, 0, 65535, np.uint16)),
        Case("v_cvt_i16_f16", "i16", (h,), lambda a: f32_to_int(a, -32768, 32767, np.int16)),
        *(
            Case(
                f"v_cvt_f32_ubyte{i}",
                f,
                ("u32",),
                lambda a, i=i: (a >> np.uint32(8 * i) & np.uint32(255)).astype(np.float32),
            )
            for i in range(4)
        ),
        Case(
            "v_cvt_off_f32_i4",
            f,
            ("u32",),
            lambda a: ((((a & 15) ^ 8).astype(np.int64) - 8) / 16).astype(np.float32),
        ),
        Case(
            "v_sat_pk_u8_i16",
            "u16",
            ("u32",),
            lambda a: (lambda s: (s[:, 0] | s[:, 1] << 8).astype(np.uint16))(
                np.clip(a.view(np.int16).reshape(-1, 2), 0, 255).astype(np.int64)
            ),
        ),
        *(
            Case(f"v_{n}_f32", f, (f,), g)
            for n, g in (("trunc", np.trunc), ("ceil", np.ceil), ("rndne", np.rint), ("floor", np.floor))
        ),
        *(
            Case(f"v_{n}_f64", d, (d,), g)
            for n, g in (("trunc", np.trunc), ("ceil", np.ceil), ("rndne", np.rint), ("floor", np.floor))
        ),
        *(
            Case(f"v_{n}_f16", h, (h,), g)
            for n, g in (("trunc", np.trunc), ("ceil", np.ceil), ("rndne", np.rint), ("floor", np.floor))
        ),
        Case("v_fract_f32", f, (f,), fract),
        Case("v_fract_f64", d, (d,), fract),
        Case(
            "v_exp_f32", f, (f,), lambda a: flush(np.exp2(flush(a).astype(np.float64)).astype(np.float32)), 1
        ),
        Case("v_log_f32", f, (f,), lambda a: np.log2(flush(a).astype(np.float64)).astype(np.float32), 1),
        Case("v_rcp_f32", f, (f,), lambda a: flush(inverse(flush(a))), 1),
        Case(
            "v_rsq_f32", f, (f,), lambda a: (1 / np.sqrt(flush(a).astype(np.float64))).astype(np.float32), 1
        ),
        Case("v_sqrt_f32", f, (f,), lambda a: np.sqrt(flush(a)), 1),
        Case(
            "v_sin_f32",
            f,
            ("turns",),
            lambda a: np.sin(2 * np.pi * (a.astype(np.float64) % 1)).astype(np.float32),
            4,
        ),
        Case(
            "v_cos_f32",
            f,
            ("turns",),
            lambda a: np.cos(2 * np.pi * (a.astype(np.float64) % 1)).astype(np.float32),
            4,
        ),
        Case("v_sqrt_f64", d, (d,), np.sqrt, 1),
        Case("v_rcp_f64", d, (d,), lambda a: 1 / a, 1),
        Case("v_rsq_f64", d, (d,), lambda a: 1 / np.sqrt(a), 2),
        Case("v_rcp_f16", h, (h,), lambda a: (1 / a.astype(np.float64)).astype(np.float16), 1),
        Case("v_sqrt_f16", h, (h,), lambda a: np.sqrt(a.astype(np.float64)).astype(np.float16), 1),
        Case("v_rsq_f16", h, (h,), lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(np.float16), 1),
        Case("v_exp_f16", h, (h,), lambda a: np.exp2(a.astype(np.float64)).astype(np.float16), 1),
        Case("v_log_f16", h, (h,), lambda a: np.log2(a.astype(np.float64)).astype(np.float16), 1),
        Case("v_frexp_exp_i32_f32", "i32", (f,), frexp_exp),
        Case("v_frexp_mant_f32", f, (f,), frexp_mant),
        Case("v_frexp_exp_i32_f64", "i32", (d,), frexp_exp),
        Case("v_frexp_mant_f64", d, (d,), frexp_mant),
        Case("v_frexp_exp_i16_f16", "i16", (h,), lambda a: frexp_exp(a).astype(np.int16)),
        Case("v_frexp_mant_f16", h, (h,), frexp_mant),
        # VOP2
        Case("v_add_f32", f, f2, np.add),
        Case("v_sub_f32", f, f2, np.subtract),
        Case("v_subrev_f32", f, f2, lambda a, b: b - a),
        Case("v_mul_f32", f, f2, np.multiply),
        Case("v_fmac_f32", f, (f, f, "acc"), fma32),
        Case("v_min_f32", f, f2, number_min),
        Case("v_max_f32", f, f2, number_max),
        Case("v_add_f16", h, (h, h), np.add),
        Case("v_sub_f16", h, (h, h), np.subtract),
        Case("v_mul_f16", h, (h, h), np.multiply),
        Case("v_min_f16", h, (h, h), number_min),
        Case("v_max_f16", h, (h, h), number_max),
        Case("v_cvt_pk_rtz_f16_f32", "u32", f2, lambda a, b: pack(rtz16(a), rtz16(b))),
        Case("v_mul_i32_i24", "u32", u2, mul24(True, False)),
        Case("v_mul_hi_i32_i24", "u32", u2, mul24(True, True)),
        Case("v_mul_u32_u24", "u32", u2, mul24(False, False)),
        Case("v_mul_hi_u32_u24", "u32", u2, mul24(False, True)),
        Case("v_min_i32", "i32", i2, np.minimum),
        Case("v_max_i32", "i32", i2, np.maximum),
        Case("v_min_u32", "u32", u2, np.minimum),
        Case("v_max_u32", "u32", u2, np.maximum),
        Case("v_lshlrev_b32", "u32", u2, lambda a, b: shift(b, a, "l", 32)),
        Case("v_lshrrev_b32", "u32", u2, lambda a, b: shift(b, a, "r", 32)),
        Case("v_ashrrev_i32", "i32", ("u32", "i32"), lambda a, b: shift(b, a, "r", 32)),
        Case("v_and_b32", "u32", u2, np.bitwise_and),
        Case("v_or_b32", "u32", u2, np.bitwise_or),
        Case("v_xor_b32", "u32", u2, np.bitwise_xor),
        Case("v_xnor_b32", "u32", u2, lambda a, b: ~(a ^ b)),
        Case("v_add_nc_u32", "u32", u2, np.add),
        Case("v_sub_nc_u32", "u32", u2, np.subtract),
        Case("v_subrev_nc_u32", "u32", u2, lambda a, b: b - a),
        Case("v_ldexp_f32", f, (f, "small"), ldexp),
        Case("v_ldexp_f64", d, (d, "small"), ldexp),
        # VOP3
        Case("v_fma_f32", f, f3, fma32),
        Case("v_fma_f16", h, (h, h, h), fma16),
        Case("v_min3_f32", f, f3, lambda a, b, c: number_min(number_min(a, b), c)),
        Case("v_max3_f32", f, f3, lambda a, b, c: number_max(number_max(a, b), c)),
        Case("v_med3_f32", f, f3, med3),
        Case("v_add_f64", d, (d, d), np.add),
        Case("v_mul_f64", d, (d, d), np.multiply),
        Case("v_min_f64", d, (d, d), number_min),
        Case("v_max_f64", d, (d, d), number_max),
        Case("v_mul_lo_u32", "u32", u2, np.multiply),
        Case("v_mul_hi_u32", "u32", u2, lambda a, b: _u32(a.astype(np.uint64) * b >> np.uint64(32))),
        Case("v_mul_hi_i32", "i32", i2, lambda a, b: (a.astype(np.int64) * b >> 32).astype(np.int32)),
        Case("v_mad_i32_i24", "u32", u3, lambda a, b, c: mul24(True, False)(a, b) + c),
        Case("v_mad_u32_u24", "u32", u3, lambda a, b, c: mul24(False, False)(a, b) + c),
        Case("v_bfe_u32", "u32", u3, bfe_u32),
        Case("v_bfe_i32", "i32", u3, bfe_i32),
        Case("v_bfi_b32", "u32", u3, lambda a, b, c: (a & b) | (~a & c)),
        Case(
            "v_bfm_b32",
            "u32",
            u2,
            lambda a, b: _u32(
                ((np.uint64(1) << (a & 31).astype(np.uint64)) - np.uint64(1)) << (b & 31).astype(np.uint64)
                & np.uint64(0xFFFFFFFF)
            ),
        ),
        Case("v_alignbit_b32", "u32", u3, alignbit),
        Case("v_alignbyte_b32", "u32", u3, alignbyte),
        Case("v_perm_b32", "u32", ("u32", "u32", "selector"), perm),
        Case(
            "v_lerp_u8",
            "u32",
            u3,
            lambda a, b, c: (
                ((a.view(np.uint8).astype(int) + b.view(np.uint8) + (c.view(np.uint8) & 1)) >> 1).astype(
                    np.uint8
                )
            ).view(np.uint32),
        ),
        Case("v_sad_u8", "u32", u3, lambda a, b, c: _u32(sad_u8(a, b) + c)),
        Case("v_sad_hi_u8", "u32", u3, lambda a, b, c: _u32((sad_u8(a, b) << 16) + c)),
        Case(
            "v_sad_u16",
            "u32",
            u3,
            lambda a, b, c: _u32(
                np.abs(a.view(np.uint16).astype(np.int64) - b.view(np.uint16)).reshape(-1, 2).sum(-1) + c
            ),
        ),
        Case("v_sad_u32", "u32", u3, lambda a, b, c: _u32(np.abs(a.astype(np.int64) - b) + c)),
        *(
            Case(f"v_{n}3_{t}", t, (t,) * 3, g)
            for t in ("i32", "u32")
            for n, g in (
                ("min", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
                ("max", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
                ("med", lambda a, b, c: np.sort(np.stack([a, b, c]), 0)[1]),
            )
        ),
        Case("v_or3_b32", "u32", u3, lambda a, b, c: a | b | c),
        Case("v_and_or_b32", "u32", u3, lambda a, b, c: (a & b) | c),
        Case("v_add3_u32", "u32", u3, lambda a, b, c: a + b + c),
        Case("v_xad_u32", "u32", u3, lambda a, b, c: (a ^ b) + c),
        Case("v_xor3_b32", "u32", u3, lambda a, b, c: a ^ b ^ c, families="gfx1"),
        Case("v_lshl_add_u32", "u32", u3, lambda a, b, c: shift(a, b, "l", 32) + c),
        Case("v_add_lshl_u32", "u32", u3, lambda a, b, c: shift(a + b, c, "l", 32)),
        Case("v_lshl_or_b32", "u32", u3, lambda a, b, c: shift(a, b, "l", 32) | c),
        Case("v_bcnt_u32_b32", "u32", u2, bcnt),
        Case("v_add_nc_i32", "u32", u2, np.add),
        Case("v_sub_nc_i32", "u32", u2, np.subtract),
        Case("v_lshlrev_b64", "u64", ("u32", "u64"), lambda a, b: shift(b, a, "l", 64)),
        Case("v_lshrrev_b64", "u64", ("u32", "u64"), lambda a, b: shift(b, a, "r", 64)),
        Case("v_ashrrev_i64", "i64", ("u32", "i64"), lambda a, b: shift(b, a, "r", 64)),
        Case(
            "v_cvt_pk_i16_i32",
            "u32",
            i2,
            lambda a, b: pack(_sat(a, -32768, 32767, np.int16), _sat(b, -32768, 32767, np.int16)),
        ),
        Case(
            "v_cvt_pk_u16_u32",
            "u32",
            u2,
            lambda a, b: pack(_sat(a, 0, 65535, np.uint16), _sat(b, 0, 65535, np.uint16)),
        ),
        Case("v_cvt_pk_norm_i16_f32", "u32", f2, lambda a, b: pack(snorm(a), snorm(b))),
        Case("v_cvt_pk_norm_u16_f32", "u32", f2, lambda a, b: pack(unorm(a), unorm(b))),
        Case("v_pack_b32_f16", "u32", (h, h), pack),
        Case("v_maxmin_f32", f, f3, lambda a, b, c: number_min(number_max(a, b), c), families="gfx11"),
        Case("v_minmax_i32", "i32", i3, lambda a, b, c: np.maximum(np.minimum(a, b), c), families="gfx11"),
        Case(
            "v_lshl_add_u64",
            "u64",
            ("u64", "u32", "u64"),
            lambda a, b, c: (a << (b & 7).astype(np.uint64)) + c,
            families="gfx94",
        ),
        # VOP3P
        *(
            Case(f"v_pk_{n}_u16", "u32", u2, packed(g, np.uint16))
            for n, g in (
                ("add", np.add),
                ("sub", np.subtract),
                ("mul_lo", np.multiply),
                ("max", np.maximum),
                ("min", np.minimum),
            )
        ),
        *(
            Case(f"v_pk_{n}_i16", "u32", u2, packed(g, np.int16))
            for n, g in (("add", np.add), ("sub", np.subtract), ("max", np.maximum), ("min", np.minimum))
        ),
        Case("v_pk_mad_u16", "u32", u3, packed(lambda a, b, c: a * b + c, np.uint16)),
        Case("v_pk_mad_i16", "u32", u3, packed(lambda a, b, c: a * b + c, np.int16)),
        Case("v_pk_lshlrev_b16", "u32", u2, packed(lambda a, b: shift(b, a, "l", 16), np.uint16)),
        Case("v_pk_lshrrev_b16", "u32", u2, packed(lambda a, b: shift(b, a, "r", 16), np.uint16)),
        Case("v_pk_ashrrev_i16", "u32", u2, packed(lambda a, b: shift(b, a, "r", 16), np.int16)),
        Case("v_pk_add_f16", "ph", ("ph", "ph"), packed(np.add, np.float16)),
        Case("v_pk_mul_f16", "ph", ("ph", "ph"), packed(np.multiply, np.float16)),
        Case("v_pk_min_f16", "ph", ("ph", "ph"), packed(number_min, np.float16)),
        Case("v_pk_max_f16", "ph", ("ph", "ph"), packed(number_max, np.float16)),
        Case("v_pk_fma_f16", "ph", ("ph", "ph", "ph"), packed(fma16, np.float16)),
        Case(
            "v_dot4_i32_iu8",
            "i32",
            ("u32", "u32", "i32"),
            dot4(True, True),
            families="gfx11",
            operands=" neg_lo:[1,1,0]",
        ),
        Case(
            "v_dot4_i32_iu8",
            "i32",
            ("u32", "u32", "i32"),
            dot4(True, False),
            families="gfx11",
            operands=" neg_lo:[1,0,0]",
        ),
        Case("v_dot4_i32_i8", "i32", ("u32", "u32", "i32"), dot4(True, True), families="gfx9"),
        Case("v_dot4_u32_u8", "i32", ("u32", "u32", "i32"), dot4(False, False)),
        Case(
            "v_dot8_i32_iu4",
            "i32",
            ("u32", "u32", "i32"),
            dot8(True),
            families="gfx11",
            operands=" neg_lo:[1,1,0]",
        ),
        Case("v_dot8_u32_u4", "i32", ("u32", "u32", "i32"), dot8(False)),
        Case(
            "v_dot2_f32_f16",
            "f32",
            ("ph", "ph", f),
            lambda a, b, c: (
                (a.view(np.float16).astype(np.float64) * b.view(np.float16)).reshape(-1, 2).sum(-1) + c
            ).astype(np.float32),
            2,
        ),
        Case(
            "v_fma_mix_f32",
            f,
            (h, h, f),
            lambda a, b, c: fma32(a.astype(np.float32), b.astype(np.float32), c),
            operands=" op_sel_hi:[1,1,0]",
        ),
    ]
    return rows


def _carry(function: Callable[..., tuple[Array, Array]]) -> Callable[..., Array]:
    """(result, carry) as one u64: the carry in bit 32."""

    def evaluate(*arrays: Array) -> Array:
        value, carry = function(*(a.astype(np.int64) for a in arrays))
        return (value & 0xFFFFFFFF).astype(np.uint64) | carry.astype(np.uint64) << np.uint64(32)

    return evaluate


def classify(x: Array) -> Array:
    """Bit number of V_CMP_CLASS that each value has."""
    size = x.dtype.itemsize
    fraction = {2: 10, 4: 23, 8: 52}[size]
    bits = x.view(f"u{size}").astype(np.uint64)
    quiet = bits >> np.uint64(fraction - 1) & np.uint64(1)
    negative = np.signbit(x)
    tiny = np.abs(x) < np.finfo(x.dtype).tiny
    order = np.where(np.isinf(x), 0, np.where(x == 0, 3, np.where(tiny, 2, 1)))
    return np.where(np.isnan(x), quiet.astype(np.int64), np.where(negative, 2 + order, 9 - order))


def _compares() -> list[Case]:
    """Every operator of VOPC on every type, class tests, and the additions that produce lane masks."""
    rows = []
    whole = {
        "lt": np.less,
        "eq": np.equal,
        "le": np.less_equal,
        "gt": np.greater,
        "ne": np.not_equal,
        "ge": np.greater_equal,
    }
    ordered: dict[str, Callable[..., Array]] = {
        **{k: v for k, v in whole.items() if k != "ne"},
        "lg": lambda a, b: (a < b) | (a > b),
        "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
        "u": lambda a, b: np.isnan(a) | np.isnan(b),
    }
    negated = {"nge": "ge", "nlg": "lg", "ngt": "gt", "nle": "le", "neq": "eq", "nlt": "lt"}
    for kind in ("i16", "u16", "i32", "u32", "i64", "u64"):
        rows += [Case(f"v_cmp_{n}_{kind}", "m", (kind, kind), g) for n, g in whole.items()]
    for kind in ("f16", "f32", "f64"):
        rows += [Case(f"v_cmp_{n}_{kind}", "m", (kind, kind), g) for n, g in ordered.items()]
        rows += [
            Case(f"v_cmp_{n}_{kind}", "m", (kind, kind), lambda a, b, g=ordered[p]: ~g(a, b))
            for n, p in negated.items()
        ]
        if kind != "f16":
            rows.append(
                Case(
                    f"v_cmp_class_{kind}",
                    "m",
                    (kind, "u32"),
                    lambda a, b: (b >> classify(a).astype(np.uint32) & 1) != 0,
                )
            )
    u2 = ("u32", "u32")
    rows += [
        Case("v_add_co_u32", "um", u2, _carry(lambda a, b: (a + b, a + b > 0xFFFFFFFF))),
        Case("v_sub_co_u32", "um", u2, _carry(lambda a, b: (a - b, a < b))),
        Case("v_subrev_co_u32", "um", u2, _carry(lambda a, b: (b - a, b < a))),
        Case(
            "v_add_co_ci_u32",
            "um",
            (*u2, "carry"),
            _carry(lambda a, b, c: (a + b + (c & 1), a + b + (c & 1) > 0xFFFFFFFF)),
        ),
        Case(
            "v_sub_co_ci_u32",
            "um",
            (*u2, "carry"),
            _carry(lambda a, b, c: (a - b - (c & 1), a < b + (c & 1))),
        ),
        Case(
            "v_subrev_co_ci_u32",
            "um",
            (*u2, "carry"),
            _carry(lambda a, b, c: (b - a - (c & 1), b < a + (c & 1))),
        ),
        Case("v_cndmask_b32", "u32", (*u2, "carry"), lambda a, b, c: np.where(c & 1, b, a)),
    ]
    return rows


CASES = _cases()
COMPARES = _compares()
# gfx11 name -> gfx9 name; None where gfx9 has no such instruction
OLD: dict[str, str] = {
    "v_add_nc_u16": "v_add_u16",
    "v_sub_nc_u16": "v_sub_u16",
    "v_add_nc_i16": "v_add_i16",
    "v_sub_nc_i16": "v_sub_i16",
    "v_cvt_pk_norm_i16_f16": "v_cvt_pknorm_i16_f16",
    "v_cvt_pk_norm_u16_f16": "v_cvt_pknorm_u16_f16",
    "v_add_co_ci_u32": "v_addc_co_u32",
    "v_sub_co_ci_u32": "v_subb_co_u32",
    "v_subrev_co_ci_u32": "v_subbrev_co_u32",
    "v_clz_i32_u32": "v_ffbh_u32",
    "v_ctz_i32_b32": "v_ffbl_b32",
    "v_cls_i32": "v_ffbh_i32",
    "v_cvt_floor_i32_f32": "v_cvt_flr_i32_f32",
    "v_cvt_nearest_i32_f32": "v_cvt_rpi_i32_f32",
    "v_cvt_pk_rtz_f16_f32": "v_cvt_pkrtz_f16_f32",
    "v_add_nc_u32": "v_add_u32",
    "v_sub_nc_u32": "v_sub_u32",
    "v_subrev_nc_u32": "v_subrev_u32",
    "v_add_nc_i32": "v_add_i32",
    "v_sub_nc_i32": "v_sub_i32",
    "v_cvt_pk_norm_i16_f32": "v_cvt_pknorm_i16_f32",
    "v_cvt_pk_norm_u16_f32": "v_cvt_pknorm_u16_f32",
}
