# ruff: noqa: E501 (a row of the table is one line)
"""Packed and mixed-precision instructions (VOP3P), dot products included; a packed row is evaluated once per
half."""

from __future__ import annotations

from forgec.emulator.table import table

__all__ = ["VOP3P"]

VOP3P = table(
    "RDNA3 16.10, CDNA3 12.10, RDNA4 16.10",
    """
v_pk_add_u16              | pu16 = pu16 pu16 | (U16)(a + b)
v_pk_sub_u16              | pu16 = pu16 pu16 | (U16)(a - b)
v_pk_mul_lo_u16           | pu16 = pu16 pu16 | (U16)(a * b)
v_pk_mad_u16              | pu16 = pu16 pu16 pu16 | (U16)(a * b + c)
v_pk_add_i16              | pi16 = pi16 pi16 | (I16)(a + b)
v_pk_sub_i16              | pi16 = pi16 pi16 | (I16)(a - b)
v_pk_mad_i16              | pi16 = pi16 pi16 pi16 | (I16)(a * b + c)
v_pk_max_u16              | pu16 = pu16 pu16 | MAX(a, b)
v_pk_min_u16              | pu16 = pu16 pu16 | MIN(a, b)
v_pk_max_i16              | pi16 = pi16 pi16 | MAX(a, b)
v_pk_min_i16              | pi16 = pi16 pi16 | MIN(a, b)
v_pk_lshlrev_b16          | pu16 = pu16 pu16 | (U16)(b << (a & (u16)15))
v_pk_lshrrev_b16          | pu16 = pu16 pu16 | (U16)(b >> (a & (u16)15))
v_pk_ashrrev_i16          | pi16 = pi16 pi16 | (I16)(b >> (a & (i16)15))
v_pk_add_u16:clamp        | pu16 = pu16 pu16 | SAT_ADD(a, b)
v_pk_sub_u16:clamp        | pu16 = pu16 pu16 | SAT_SUB(a, b)
v_pk_add_i16:clamp        | pi16 = pi16 pi16 | SAT_ADD(a, b)
v_pk_sub_i16:clamp        | pi16 = pi16 pi16 | SAT_SUB(a, b)
v_pk_add_f16              | pf16 = pf16 pf16 | to_f16(to_f32(a) + to_f32(b))
v_pk_mul_f16              | pf16 = pf16 pf16 | to_f16(to_f32(a) * to_f32(b))
v_pk_fma_f16              | pf16 = pf16 pf16 pf16 | fma_f16(a, b, c)
v_pk_min_f16 v_pk_min_num_f16 | pf16 = pf16 pf16 | min_f16(a, b)
v_pk_max_f16 v_pk_max_num_f16 | pf16 = pf16 pf16 | max_f16(a, b)
v_pk_add_f32              | pf32 = pf32 pf32 | a + b
v_pk_mul_f32              | pf32 = pf32 pf32 | a * b
v_pk_fma_f32              | pf32 = pf32 pf32 pf32 | FMA(a, b, c)

# mixed precision: op_sel_hi chooses f16 or f32 for each source
v_fma_mix_f32 v_mad_mix_f32 | f32 = mix mix mix | FMA(a, b, c)
v_fma_mixlo_f16 v_mad_mixlo_f16 | f16 = mix mix mix | to_f16(FMA(a, b, c))
v_fma_mixhi_f16 v_mad_mixhi_f16 | f16hi = mix mix mix | to_f16(FMA(a, b, c))

# dot products; $S0 and $S1 are the signedness bits that neg_lo carries
v_dot2_f32_f16            | f32 = pf16raw pf16raw f32 | CV(CV(to_f32(BC(F16, LOW16(a))), F64) * CV(to_f32(BC(F16, LOW16(b))), F64) + \
    CV(to_f32(BC(F16, HIGH16(a))), F64) * CV(to_f32(BC(F16, HIGH16(b))), F64) + CV(c, F64), F32)
v_dot2_f32_bf16           | f32 = pf16raw pf16raw f32 | CV(CV(bf16_to_f32(LOW16(a)), F64) * CV(bf16_to_f32(LOW16(b)), F64) + \
    CV(bf16_to_f32(HIGH16(a)), F64) * CV(bf16_to_f32(HIGH16(b)), F64) + CV(c, F64), F32)
v_dot2_i32_i16            | i32 = u32 u32 i32 | c + ((I32)(a << 16) >> 16) * ((I32)(b << 16) >> 16) + ((I32)a >> 16) * ((I32)b >> 16)
v_dot2_u32_u16            | u32 = u32 u32 u32 | c + (a & 0xffffu) * (b & 0xffffu) + (a >> 16) * (b >> 16)
v_dot4_i32_iu8            | i32 = u32 u32 i32 | c + dot4(a, b, $S0, $S1)
v_dot4_i32_i8             | i32 = u32 u32 i32 | c + dot4(a, b, 1, 1)
v_dot4_u32_u8             | i32 = u32 u32 i32 | c + dot4(a, b, 0, 0)
v_dot8_i32_iu4            | i32 = u32 u32 i32 | c + dot8(a, b, $S0, $S1)
v_dot8_i32_i4             | i32 = u32 u32 i32 | c + dot8(a, b, 1, 1)
v_dot8_u32_u4             | i32 = u32 u32 i32 | c + dot8(a, b, 0, 0)
v_dot4_i32_iu8:clamp      | i32 = u32 u32 i32 | SAT_ADD(dot4(a, b, $S0, $S1), c)
v_dot4_i32_i8:clamp       | i32 = u32 u32 i32 | SAT_ADD(dot4(a, b, 1, 1), c)
v_dot4_u32_u8:clamp       | u32 = u32 u32 u32 | SAT_ADD((U32)dot4(a, b, 0, 0), c)
v_dot8_i32_iu4:clamp      | i32 = u32 u32 i32 | SAT_ADD(dot8(a, b, $S0, $S1), c)
v_dot8_i32_i4:clamp       | i32 = u32 u32 i32 | SAT_ADD(dot8(a, b, 1, 1), c)
v_dot8_u32_u4:clamp       | u32 = u32 u32 u32 | SAT_ADD((U32)dot8(a, b, 0, 0), c)
""",
)
