# ruff: noqa: E501 (a row of the table is one line)
"""Two-operand vector instructions (VOP2), which VOP3 encodes too: the meaning of each over all lanes."""

from __future__ import annotations

from forgec.emulator.table import table

__all__ = ["VOP2"]

VOP2 = table(
    "RDNA3 16.7, CDNA3 12.7, RDNA4 16.7",
    """
v_cndmask_b32             | u32 = u32 u32 m | SEL32(lanes32(c), b, a)
v_cndmask_b16             | u16 = u16 u16 m | SEL16(lanes16(c), b, a)

# f32
v_add_f32                 | f32 = f32 f32 | a + b
v_sub_f32                 | f32 = f32 f32 | a - b
v_subrev_f32              | f32 = f32 f32 | b - a
v_mul_f32                 | f32 = f32 f32 | a * b
v_mul_dx9_zero_f32 v_mul_legacy_f32 | f32 = f32 f32 | mul_legacy(a, b)
v_fmac_f32                | f32 = f32 f32 @f32 | FMA(a, b, c)
v_fmac_dx9_zero_f32 v_fmac_legacy_f32 | f32 = f32 f32 @f32 | fma_legacy(a, b, c)
v_mac_f32                 | f32 = f32 f32 @f32 | flush_f32(flush_f32(a * b) + c)
v_madmk_f32 v_madak_f32   | f32 = f32 f32 f32 | flush_f32(flush_f32(a * b) + c)
v_fmamk_f32               | f32 = f32 f32 f32 | FMA(a, b, c)
v_fmaak_f32               | f32 = f32 f32 f32 | FMA(a, b, c)
v_min_f32 v_min_num_f32   | f32 = f32 f32 | min_f32(a, b)
v_max_f32 v_max_num_f32   | f32 = f32 f32 | max_f32(a, b)
v_minimum_f32             | f32 = f32 f32 | minimum_f32(a, b)
v_maximum_f32             | f32 = f32 f32 | maximum_f32(a, b)
v_ldexp_f32               | f32 = f32 i32 | I32 n = MAX(MIN(b, SPLAT(I32, 400)), SPLAT(I32, -400)); F64 s = (F64)((CV(n, I64) + 1023) << 52); \
    F32 d = CV(CV(a, F64) * s, F32)

# f16
v_add_f16                 | f16 = f16 f16 | to_f16(to_f32(a) + to_f32(b))
v_sub_f16                 | f16 = f16 f16 | to_f16(to_f32(a) - to_f32(b))
v_subrev_f16              | f16 = f16 f16 | to_f16(to_f32(b) - to_f32(a))
v_mul_f16                 | f16 = f16 f16 | to_f16(to_f32(a) * to_f32(b))
v_fmac_f16                | f16 = f16 f16 @f16 | fma_f16(a, b, c)
v_mac_f16                 | f16 = f16 f16 @f16 | to_f16(to_f32(to_f16(to_f32(a) * to_f32(b))) + to_f32(c))
v_madmk_f16 v_madak_f16   | f16 = f16 f16 f16 | to_f16(to_f32(to_f16(to_f32(a) * to_f32(b))) + to_f32(c))
v_fmamk_f16               | f16 = f16 f16 f16 | fma_f16(a, b, c)
v_fmaak_f16               | f16 = f16 f16 f16 | fma_f16(a, b, c)
v_min_f16 v_min_num_f16   | f16 = f16 f16 | min_f16(a, b)
v_max_f16 v_max_num_f16   | f16 = f16 f16 | max_f16(a, b)
v_ldexp_f16               | f16 = f16 i16 | I32 n = MAX(MIN(CV(b, I32), SPLAT(I32, 60)), SPLAT(I32, -60)); \
    F16 d = f64_to_f16(CV(a, F64) * (F64)((CV(n, I64) + 1023) << 52))
v_cvt_pk_rtz_f16_f32 v_cvt_pkrtz_f16_f32 | u32 = f32 f32 | PACK16(BC(U16, f16_rtz(a)), BC(U16, f16_rtz(b)))
v_pk_fmac_f16             | pf16 = pf16 pf16 @pf16 | fma_f16(a, b, c)

# f64
v_fmac_f64                | f64 = f64 f64 @f64 | FMA(a, b, c)
v_add_f64                 | f64 = f64 f64 | a + b
v_mul_f64                 | f64 = f64 f64 | a * b
v_min_f64 v_min_num_f64   | f64 = f64 f64 | min_f64(a, b)
v_max_f64 v_max_num_f64   | f64 = f64 f64 | max_f64(a, b)
v_ldexp_f64               | f64 = f64 i32 | I32 n = MAX(MIN(b, SPLAT(I32, 2200)), SPLAT(I32, -2200)), h = n / 4, g = n - 3 * h; \
    F64 s = (F64)((CV(h, I64) + 1023) << 52), t = (F64)((CV(g, I64) + 1023) << 52); F64 up = a * s * s * s * t, down = a * t * s * s * s; \
    F64 d = SELF64(CV(n > 0, I64), up, down)

# integers
v_mul_i32_i24             | i32 = i32 i32 | sext_bits(a, 24) * sext_bits(b, 24)
v_mul_hi_i32_i24          | i32 = i32 i32 | mulhi_i32(sext_bits(a, 24), sext_bits(b, 24))
v_mul_u32_u24             | u32 = u32 u32 | (a & 0xffffffu) * (b & 0xffffffu)
v_mul_hi_u32_u24          | u32 = u32 u32 | mulhi_u32(a & 0xffffffu, b & 0xffffffu)
v_min_i32                 | i32 = i32 i32 | MIN(a, b)
v_max_i32                 | i32 = i32 i32 | MAX(a, b)
v_min_u32                 | u32 = u32 u32 | MIN(a, b)
v_max_u32                 | u32 = u32 u32 | MAX(a, b)
v_lshlrev_b32             | u32 = u32 u32 | b << (a & 31u)
v_lshrrev_b32             | u32 = u32 u32 | b >> (a & 31u)
v_ashrrev_i32             | i32 = i32 i32 | b >> (a & 31)
v_and_b32                 | u32 = u32 u32 | a & b
v_or_b32                  | u32 = u32 u32 | a | b
v_xor_b32                 | u32 = u32 u32 | a ^ b
v_xnor_b32                | u32 = u32 u32 | ~(a ^ b)
v_add_nc_u32 v_add_u32    | u32 = u32 u32 | a + b
v_sub_nc_u32 v_sub_u32    | u32 = u32 u32 | a - b
v_subrev_nc_u32 v_subrev_u32 | u32 = u32 u32 | b - a
v_add_co_u32              | u32 m = u32 u32 | U32 d = a + b; mask d2 = BITS(d < a)
v_sub_co_u32              | u32 m = u32 u32 | U32 d = a - b; mask d2 = BITS(b > a)
v_subrev_co_u32           | u32 m = u32 u32 | U32 d = b - a; mask d2 = BITS(a > b)
v_add_co_ci_u32 v_addc_co_u32 | u32 m = u32 u32 m | U32 t = a + b; U32 ci = lanes32(c) & 1u; U32 d = t + ci; mask d2 = BITS((t < a) | (d < t))
v_sub_co_ci_u32 v_subb_co_u32 | u32 m = u32 u32 m | U32 ci = lanes32(c) & 1u; U32 d = a - b - ci; mask d2 = BITS((a < b) | ((a == b) & (I32)(ci != 0u)))
v_subrev_co_ci_u32 v_subbrev_co_u32 | u32 m = u32 u32 m | U32 ci = lanes32(c) & 1u; U32 d = b - a - ci; \
    mask d2 = BITS((b < a) | ((a == b) & (I32)(ci != 0u)))
v_lshlrev_b64             | u64 = u32 u64 | b << (CV(a, U64) & 63UL)
v_lshrrev_b64             | u64 = u32 u64 | b >> (CV(a, U64) & 63UL)
v_ashrrev_i64             | i64 = u32 i64 | b >> (CV(a, I64) & 63L)
v_add_nc_u64              | u64 = u64 u64 | a + b
v_sub_nc_u64              | u64 = u64 u64 | a - b
v_mul_u64                 | u64 = u64 u64 | a * b

# dot products that accumulate into their destination
v_dot2acc_f32_f16 v_dot2c_f32_f16 | f32 = u32 u32 @f32 | CV(CV(to_f32(BC(F16, LOW16(a))), F64) * CV(to_f32(BC(F16, LOW16(b))), F64) + \
    CV(to_f32(BC(F16, HIGH16(a))), F64) * CV(to_f32(BC(F16, HIGH16(b))), F64) + CV(c, F64), F32)
v_dot4c_i32_i8            | i32 = u32 u32 @i32 | c + dot4(a, b, 1, 1)
v_dot8c_i32_i4            | i32 = u32 u32 @i32 | c + dot8(a, b, 1, 1)
v_dot2c_i32_i16           | i32 = u32 u32 @i32 | c + ((I32)(a << 16) >> 16) * ((I32)(b << 16) >> 16) + ((I32)a >> 16) * ((I32)b >> 16)

# 16-bit integers that gfx9 encodes as VOP2
v_add_u16 v_add_nc_u16    | u16 = u16 u16 | (U16)(a + b)
v_sub_u16 v_sub_nc_u16    | u16 = u16 u16 | (U16)(a - b)
v_subrev_u16              | u16 = u16 u16 | (U16)(b - a)
v_mul_lo_u16              | u16 = u16 u16 | (U16)(a * b)
v_lshlrev_b16             | u16 = u16 u16 | (U16)(b << (a & (u16)15))
v_lshrrev_b16             | u16 = u16 u16 | (U16)(b >> (a & (u16)15))
v_ashrrev_i16             | i16 = i16 i16 | (I16)(b >> (a & (i16)15))
v_max_u16                 | u16 = u16 u16 | MAX(a, b)
v_max_i16                 | i16 = i16 i16 | MAX(a, b)
v_min_u16                 | u16 = u16 u16 | MIN(a, b)
v_min_i16                 | i16 = i16 i16 | MIN(a, b)
v_and_b16                 | u16 = u16 u16 | (U16)(a & b)
v_or_b16                  | u16 = u16 u16 | (U16)(a | b)
v_xor_b16                 | u16 = u16 u16 | (U16)(a ^ b)
""",
)
