# ruff: noqa: E501 (a row of the table is one line)
"""One-operand vector instructions (VOP1): the meaning of each, as a C expression over all lanes."""

from __future__ import annotations

from forgec.emulator.table import table

__all__ = ["VOP1"]

VOP1 = table(
    "RDNA3 16.8, CDNA3 12.8, RDNA4 16.8",
    """
# moves and bits
v_mov_b32 v_accvgpr_mov_b32 v_accvgpr_read_b32 v_accvgpr_write_b32 | u32 = u32 | a
v_mov_b64                 | u64 = u64 | a
v_mov_b16                 | u16 = u16 | a
v_not_b32                 | u32 = u32 | ~a
v_not_b16                 | u16 = u16 | (U16)~a
v_bfrev_b32               | u32 = u32 | __builtin_elementwise_bitreverse(a)
v_clz_i32_u32 v_ffbh_u32  | u32 = u32 | SEL32(a == 0u, SPLAT(U32, 0xffffffffu), 31u - CV((U64)CV(CV(a, F64), F64) >> 52, U32) + 1023u)
v_ctz_i32_b32 v_ffbl_b32  | u32 = u32 | SEL32(a == 0u, SPLAT(U32, 0xffffffffu), __builtin_elementwise_popcount((a & -a) - 1u))
v_cls_i32 v_ffbh_i32      | u32 = i32 | U32 x = (U32)(a ^ (a >> 31)); \
    U32 d = SEL32(x == 0u, SPLAT(U32, 0xffffffffu), 31u - CV((U64)CV(CV(x, F64), F64) >> 52, U32) + 1023u)
v_sat_pk_u8_i16           | u16 = pi16raw | U32 lo = (U32)MAX(MIN((I32)(a << 16) >> 16, SPLAT(I32, 255)), SPLAT(I32, 0)); \
    U32 hi = (U32)MAX(MIN((I32)a >> 16, SPLAT(I32, 255)), SPLAT(I32, 0)); U16 d = CV(lo | hi << 8, U16)

# conversions
v_cvt_f32_i32             | f32 = i32 | CV(a, F32)
v_cvt_f32_u32             | f32 = u32 | CV(a, F32)
v_cvt_u32_f32             | u32 = f32 | f32_to_u32(a)
v_cvt_i32_f32             | i32 = f32 | f32_to_i32(a)
v_cvt_nearest_i32_f32 v_cvt_rpi_i32_f32 | i32 = f32 | f32_to_i32(__builtin_elementwise_floor(a + 0.5f))
v_cvt_floor_i32_f32 v_cvt_flr_i32_f32   | i32 = f32 | f32_to_i32(__builtin_elementwise_floor(a))
v_cvt_f64_i32             | f64 = i32 | CV(a, F64)
v_cvt_f64_u32             | f64 = u32 | CV(a, F64)
v_cvt_i32_f64             | i32 = f64 | f64_to_i32(a)
v_cvt_u32_f64             | u32 = f64 | f64_to_u32(a)
v_cvt_f32_f64             | f32 = f64 | CV(a, F32)
v_cvt_f64_f32             | f64 = f32 | CV(a, F64)
v_cvt_f16_f32             | f16 = f32 | to_f16(a)
v_cvt_f32_f16             | f32 = f16 | to_f32(a)
v_cvt_f16_u16             | f16 = u16 | to_f16(CV(a, F32))
v_cvt_f16_i16             | f16 = i16 | to_f16(CV(a, F32))
v_cvt_u16_f16             | u16 = f16 | f32_to_u16_sat(to_f32(a))
v_cvt_i16_f16             | i16 = f16 | f32_to_i16_sat(to_f32(a))
v_cvt_i32_i16             | i32 = i16 | CV(a, I32)
v_cvt_u32_u16             | u32 = u16 | CV(a, U32)
v_cvt_f32_ubyte0          | f32 = u32 | CV(a & 255u, F32)
v_cvt_f32_ubyte1          | f32 = u32 | CV(a >> 8 & 255u, F32)
v_cvt_f32_ubyte2          | f32 = u32 | CV(a >> 16 & 255u, F32)
v_cvt_f32_ubyte3          | f32 = u32 | CV(a >> 24, F32)
v_cvt_off_f32_i4          | f32 = u32 | CV((I32)(a << 28) >> 28, F32) * 0.0625f
v_cvt_norm_i16_f16        | i16 = f16 | snorm16(to_f32(a))
v_cvt_norm_u16_f16        | u16 = f16 | unorm16(to_f32(a))
v_cvt_f32_bf16            | f32 = u16 | bf16_to_f32(a)

# rounding to integers
v_trunc_f32               | f32 = f32 | __builtin_elementwise_trunc(a)
v_ceil_f32                | f32 = f32 | __builtin_elementwise_ceil(a)
v_rndne_f32               | f32 = f32 | __builtin_elementwise_roundeven(a)
v_floor_f32               | f32 = f32 | __builtin_elementwise_floor(a)
v_fract_f32               | f32 = f32 | fract_f32(a)
v_trunc_f64               | f64 = f64 | __builtin_elementwise_trunc(a)
v_ceil_f64                | f64 = f64 | __builtin_elementwise_ceil(a)
v_rndne_f64               | f64 = f64 | __builtin_elementwise_roundeven(a)
v_floor_f64               | f64 = f64 | __builtin_elementwise_floor(a)
v_fract_f64               | f64 = f64 | fract_f64(a)
v_trunc_f16               | f16 = f16 | to_f16(__builtin_elementwise_trunc(to_f32(a)))
v_ceil_f16                | f16 = f16 | to_f16(__builtin_elementwise_ceil(to_f32(a)))
v_rndne_f16               | f16 = f16 | to_f16(__builtin_elementwise_roundeven(to_f32(a)))
v_floor_f16               | f16 = f16 | to_f16(__builtin_elementwise_floor(to_f32(a)))
v_fract_f16               | f16 = f16 | F32 x = to_f32(a); F16 d = min_f16(to_f16(x - __builtin_elementwise_floor(x)), BC(F16, SPLAT(U16, 0x3bff)))

# transcendentals
v_exp_f32                 | f32 = f32 | emu_exp2(a)
v_log_f32                 | f32 = f32 | emu_log2(a)
v_rcp_f32 v_rcp_iflag_f32 | f32 = f32 | rcp_f32(a)
v_rsq_f32                 | f32 = f32 | rsq_f32(a)
v_sqrt_f32                | f32 = f32 | sqrt_f32(a)
v_sin_f32                 | f32 = f32 | emu_sin(a)
v_cos_f32                 | f32 = f32 | emu_cos(a)
v_rcp_f64                 | f64 = f64 | 1.0 / a
v_rsq_f64                 | f64 = f64 | 1.0 / __builtin_elementwise_sqrt(a)
v_sqrt_f64                | f64 = f64 | __builtin_elementwise_sqrt(a)
v_exp_f16                 | f16 = f16 | to_f16(emu_exp2(to_f32(a)))
v_log_f16                 | f16 = f16 | to_f16(emu_log2(to_f32(a)))
v_rcp_f16                 | f16 = f16 | to_f16(1.0f / to_f32(a))
v_rsq_f16                 | f16 = f16 | f64_to_f16(1.0 / __builtin_elementwise_sqrt(CV(a, F64)))
v_sqrt_f16                | f16 = f16 | to_f16(__builtin_elementwise_sqrt(to_f32(a)))
v_sin_f16                 | f16 = f16 | to_f16(emu_sin(to_f32(a)))
v_cos_f16                 | f16 = f16 | to_f16(emu_cos(to_f32(a)))

# taking floats apart
v_frexp_exp_i32_f32       | i32 = f32 | F64 x = CV(a, F64); I32 e = CV((U64)x >> 52 & 0x7ffUL, I32) - 1022; \
    I32 d = (I32)SEL32((a == 0.0f) | ((U32)ABSF32(a) >= 0x7f800000u), SPLAT(U32, 0), (U32)e)
v_frexp_mant_f32          | f32 = f32 | F64 x = CV(a, F64); \
    F64 y = (F64)(((U64)x & 0x800fffffffffffffUL) | 0x3fe0000000000000UL); \
    F32 d = SELF32((a == 0.0f) | ((U32)ABSF32(a) >= 0x7f800000u), a, CV(y, F32))
v_frexp_exp_i32_f64       | i32 = f64 | I64 sub = ((U64)a & 0x7ff0000000000000UL) == 0UL; F64 x = SELF64(sub, a * 18014398509481984.0, a); \
    I64 e = (I64)((U64)x >> 52 & 0x7ffUL) - 1022 + (sub & -54L); \
    I64 odd = (a == 0.0) | ((U64)ABSF64(a) >= 0x7ff0000000000000UL); I32 d = CV((I64)SEL64(odd, SPLAT(U64, 0), e), I32)
v_frexp_mant_f64          | f64 = f64 | I64 sub = ((U64)a & 0x7ff0000000000000UL) == 0UL; F64 x = SELF64(sub, a * 18014398509481984.0, a); \
    I64 odd = (a == 0.0) | ((U64)ABSF64(a) >= 0x7ff0000000000000UL); \
    F64 d = SELF64(odd, a, (F64)(((U64)x & 0x800fffffffffffffUL) | 0x3fe0000000000000UL))
v_frexp_exp_i16_f16       | i16 = f16 | F32 f = to_f32(a); I32 e = (I32)((U32)f >> 23 & 255u) - 126; \
    I16 d = CV((I32)SEL32((f == 0.0f) | ((U32)ABSF32(f) >= 0x7f800000u), SPLAT(U32, 0), (U32)e), I16)
v_frexp_mant_f16          | f16 = f16 | F32 f = to_f32(a); F32 y = (F32)(((U32)f & 0x807fffffu) | 0x3f000000u); \
    F16 d = to_f16(SELF32((f == 0.0f) | ((U32)ABSF32(f) >= 0x7f800000u), f, y))
""",
)
