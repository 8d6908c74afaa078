# ruff: noqa: E501 (a row of the table is one line)
"""Scalar instructions (SOP1, SOP2, SOPC, SOPK): the meaning of each as C on scalars.

Sources are bound to a, b, c; ``d`` is the result, ``scc`` the condition code, ``exec`` the lane mask. Types:
u32 i32 u64 i64 f32 f16 (a 16-bit float in the low half); ``k`` is a 16-bit immediate, sign-extended, ``ku``
zero-extended.
"""

from __future__ import annotations

from forgec.emulator.table import Row, table

__all__ = ["SALU", "SAVEEXEC"]

SALU = table(
    "RDNA3 16.1-16.4, CDNA3 12.1-12.4, RDNA4 16.1-16.4",
    """
# SOP2: arithmetic
s_add_u32 s_add_co_u32    | u32 = u32 u32 | u32 d = a + b; scc = d < a
s_sub_u32 s_sub_co_u32    | u32 = u32 u32 | u32 d = a - b; scc = b > a
s_add_i32 s_add_co_i32    | u32 = u32 u32 | u32 d = a + b; scc = (~(a ^ b) & (a ^ d)) >> 31
s_sub_i32 s_sub_co_i32    | u32 = u32 u32 | u32 d = a - b; scc = ((a ^ b) & (a ^ d)) >> 31
s_addc_u32 s_add_co_ci_u32 | u32 = u32 u32 | u64 t = (u64)a + b + scc; u32 d = (u32)t; scc = (u32)(t >> 32)
s_subb_u32 s_sub_co_ci_u32 | u32 = u32 u32 | u64 t = (u64)a - b - scc; u32 d = (u32)t; scc = (u32)(t >> 32) & 1
s_add_u64 s_add_nc_u64    | u64 = u64 u64 | a + b
s_sub_u64 s_sub_nc_u64    | u64 = u64 u64 | a - b
s_mul_u64                 | u64 = u64 u64 | a * b
s_absdiff_i32             | u32 = u32 u32 | i32 t = (i32)(a - b); u32 d = t < 0 ? 0u - (u32)t : (u32)t; scc = d != 0
s_min_i32                 | i32 = i32 i32 | i32 d = a < b ? a : b; scc = a < b
s_min_u32                 | u32 = u32 u32 | u32 d = a < b ? a : b; scc = a < b
s_max_i32                 | i32 = i32 i32 | i32 d = a > b ? a : b; scc = a > b
s_max_u32                 | u32 = u32 u32 | u32 d = a > b ? a : b; scc = a > b
s_mul_i32                 | u32 = u32 u32 | a * b
s_mul_hi_u32              | u32 = u32 u32 | (u32)((u64)a * b >> 32)
s_mul_hi_i32              | i32 = i32 i32 | (i32)((i64)a * b >> 32)
s_lshl1_add_u32           | u32 = u32 u32 | u64 t = ((u64)a << 1) + b; u32 d = (u32)t; scc = t > 0xffffffffUL
s_lshl2_add_u32           | u32 = u32 u32 | u64 t = ((u64)a << 2) + b; u32 d = (u32)t; scc = t > 0xffffffffUL
s_lshl3_add_u32           | u32 = u32 u32 | u64 t = ((u64)a << 3) + b; u32 d = (u32)t; scc = t > 0xffffffffUL
s_lshl4_add_u32           | u32 = u32 u32 | u64 t = ((u64)a << 4) + b; u32 d = (u32)t; scc = t > 0xffffffffUL

# SOP2: bits
s_cselect_b32             | u32 = u32 u32 | scc ? a : b
s_cselect_b64             | u64 = u64 u64 | scc ? a : b
s_and_b32                 | u32 = u32 u32 | u32 d = a & b; scc = d != 0
s_and_b64                 | u64 = u64 u64 | u64 d = a & b; scc = d != 0
s_or_b32                  | u32 = u32 u32 | u32 d = a | b; scc = d != 0
s_or_b64                  | u64 = u64 u64 | u64 d = a | b; scc = d != 0
s_xor_b32                 | u32 = u32 u32 | u32 d = a ^ b; scc = d != 0
s_xor_b64                 | u64 = u64 u64 | u64 d = a ^ b; scc = d != 0
s_and_not1_b32 s_andn2_b32 | u32 = u32 u32 | u32 d = a & ~b; scc = d != 0
s_and_not1_b64 s_andn2_b64 | u64 = u64 u64 | u64 d = a & ~b; scc = d != 0
s_or_not1_b32 s_orn2_b32  | u32 = u32 u32 | u32 d = a | ~b; scc = d != 0
s_or_not1_b64 s_orn2_b64  | u64 = u64 u64 | u64 d = a | ~b; scc = d != 0
s_nand_b32                | u32 = u32 u32 | u32 d = ~(a & b); scc = d != 0
s_nand_b64                | u64 = u64 u64 | u64 d = ~(a & b); scc = d != 0
s_nor_b32                 | u32 = u32 u32 | u32 d = ~(a | b); scc = d != 0
s_nor_b64                 | u64 = u64 u64 | u64 d = ~(a | b); scc = d != 0
s_xnor_b32                | u32 = u32 u32 | u32 d = ~(a ^ b); scc = d != 0
s_xnor_b64                | u64 = u64 u64 | u64 d = ~(a ^ b); scc = d != 0
s_lshl_b32                | u32 = u32 u32 | u32 d = a << (b & 31); scc = d != 0
s_lshl_b64                | u64 = u64 u32 | u64 d = a << (b & 63); scc = d != 0
s_lshr_b32                | u32 = u32 u32 | u32 d = a >> (b & 31); scc = d != 0
s_lshr_b64                | u64 = u64 u32 | u64 d = a >> (b & 63); scc = d != 0
s_ashr_i32                | i32 = i32 u32 | i32 d = a >> (b & 31); scc = d != 0
s_ashr_i64                | i64 = i64 u32 | i64 d = a >> (b & 63); scc = d != 0
s_bfm_b32                 | u32 = u32 u32 | ((1u << (a & 31)) - 1u) << (b & 31)
s_bfm_b64                 | u64 = u32 u32 | ((1UL << (a & 63)) - 1UL) << (b & 63)
s_bfe_u32                 | u32 = u32 u32 | u32 n = b >> 16 & 127; u64 t = a >> (b & 31); u32 d = n >= 32 ? (u32)t : (u32)(t & ((1UL << n) - 1)); scc = d != 0
s_bfe_i32                 | i32 = i32 u32 | u32 n = b >> 16 & 127; i64 t = a >> (b & 31); i32 d = n == 0 ? 0 : n >= 32 ? (i32)t : (i32)((u32)t << (32 - n)) >> (32 - n); scc = d != 0
s_bfe_u64                 | u64 = u64 u32 | u32 n = b >> 16 & 127; u64 t = a >> (b & 63); u64 d = n >= 64 ? t : t & ((1UL << n) - 1); scc = d != 0
s_bfe_i64                 | i64 = i64 u32 | u32 n = b >> 16 & 127; i64 t = a >> (b & 63); i64 d = n == 0 ? 0 : n >= 64 ? t : (i64)((u64)t << (64 - n)) >> (64 - n); scc = d != 0
s_pack_ll_b32_b16         | u32 = u32 u32 | (a & 0xffffu) | b << 16
s_pack_lh_b32_b16         | u32 = u32 u32 | (a & 0xffffu) | (b & 0xffff0000u)
s_pack_hh_b32_b16         | u32 = u32 u32 | a >> 16 | (b & 0xffff0000u)
s_pack_hl_b32_b16         | u32 = u32 u32 | a >> 16 | b << 16

# SOP1
s_mov_b32                 | u32 = u32 | a
s_mov_b64                 | u64 = u64 | a
s_cmov_b32                | u32 = u32 @u32 | scc ? a : b
s_cmov_b64                | u64 = u64 @u64 | scc ? a : b
s_not_b32                 | u32 = u32 | u32 d = ~a; scc = d != 0
s_not_b64                 | u64 = u64 | u64 d = ~a; scc = d != 0
s_brev_b32                | u32 = u32 | __builtin_bitreverse32(a)
s_brev_b64                | u64 = u64 | __builtin_bitreverse64(a)
s_bcnt0_i32_b32           | u32 = u32 | u32 d = (u32)__builtin_popcount(~a); scc = d != 0
s_bcnt0_i32_b64           | u32 = u64 | u32 d = (u32)__builtin_popcountl(~a); scc = d != 0
s_bcnt1_i32_b32           | u32 = u32 | u32 d = (u32)__builtin_popcount(a); scc = d != 0
s_bcnt1_i32_b64           | u32 = u64 | u32 d = (u32)__builtin_popcountl(a); scc = d != 0
s_ctz_i32_b32 s_ff1_i32_b32 | u32 = u32 | a ? (u32)__builtin_ctz(a) : 0xffffffffu
s_ctz_i32_b64 s_ff1_i32_b64 | u32 = u64 | a ? (u32)__builtin_ctzl(a) : 0xffffffffu
s_ff0_i32_b32             | u32 = u32 | ~a ? (u32)__builtin_ctz(~a) : 0xffffffffu
s_ff0_i32_b64             | u32 = u64 | ~a ? (u32)__builtin_ctzl(~a) : 0xffffffffu
s_clz_i32_u32 s_flbit_i32_b32 | u32 = u32 | a ? (u32)__builtin_clz(a) : 0xffffffffu
s_clz_i32_u64 s_flbit_i32_b64 | u32 = u64 | a ? (u32)__builtin_clzl(a) : 0xffffffffu
s_cls_i32 s_flbit_i32     | u32 = i32 | u32 t = (u32)(a ^ (a >> 31)); u32 d = t ? (u32)__builtin_clz(t) : 0xffffffffu
s_cls_i32_i64 s_flbit_i32_i64 | u32 = i64 | u64 t = (u64)(a ^ (a >> 63)); u32 d = t ? (u32)__builtin_clzl(t) : 0xffffffffu
s_sext_i32_i8             | i32 = u32 | (i32)(i8)a
s_sext_i32_i16            | i32 = u32 | (i32)(i16)a
s_abs_i32                 | u32 = i32 | u32 d = a < 0 ? 0u - (u32)a : (u32)a; scc = d != 0
s_bitset0_b32             | u32 = u32 @u32 | b & ~(1u << (a & 31))
s_bitset1_b32             | u32 = u32 @u32 | b | 1u << (a & 31)
s_bitset0_b64             | u64 = u32 @u64 | b & ~(1UL << (a & 63))
s_bitset1_b64             | u64 = u32 @u64 | b | 1UL << (a & 63)
s_bitreplicate_b64_b32    | u64 = u32 | u64 d = 0; for (u32 i = 0; i < 32; ++i) d |= (u64)(a >> i & 1) * (3UL << 2 * i)
s_quadmask_b32            | u32 = u32 | u32 d = 0; for (u32 i = 0; i < 8; ++i) d |= (u32)((a >> 4 * i & 15) != 0) << i; scc = d != 0
s_quadmask_b64            | u64 = u64 | u64 d = 0; for (u32 i = 0; i < 16; ++i) d |= (u64)((a >> 4 * i & 15) != 0) << i; scc = d != 0
s_wqm_b32                 | u32 = u32 | u32 d = 0; for (u32 i = 0; i < 32; i += 4) d |= (a >> i & 15 ? 15u : 0u) << i; scc = d != 0
s_wqm_b64                 | u64 = u64 | u64 d = 0; for (u32 i = 0; i < 64; i += 4) d |= (a >> i & 15 ? 15UL : 0UL) << i; scc = d != 0

# SOPC
s_cmp_eq_i32 s_cmp_eq_u32 | = u32 u32 | scc = a == b
s_cmp_lg_i32 s_cmp_lg_u32 | = u32 u32 | scc = a != b
s_cmp_gt_i32              | = i32 i32 | scc = a > b
s_cmp_ge_i32              | = i32 i32 | scc = a >= b
s_cmp_lt_i32              | = i32 i32 | scc = a < b
s_cmp_le_i32              | = i32 i32 | scc = a <= b
s_cmp_gt_u32              | = u32 u32 | scc = a > b
s_cmp_ge_u32              | = u32 u32 | scc = a >= b
s_cmp_lt_u32              | = u32 u32 | scc = a < b
s_cmp_le_u32              | = u32 u32 | scc = a <= b
s_cmp_eq_u64              | = u64 u64 | scc = a == b
s_cmp_lg_u64              | = u64 u64 | scc = a != b
s_bitcmp0_b32             | = u32 u32 | scc = !(a >> (b & 31) & 1)
s_bitcmp1_b32             | = u32 u32 | scc = a >> (b & 31) & 1
s_bitcmp0_b64             | = u64 u32 | scc = !(a >> (b & 63) & 1)
s_bitcmp1_b64             | = u64 u32 | scc = (u32)(a >> (b & 63) & 1)

# SOPK
s_movk_i32                | i32 = k | a
s_cmovk_i32               | i32 = k @i32 | scc ? a : b
s_addk_i32 s_addk_co_i32  | u32 = k @u32 | u32 d = (u32)a + b; scc = (~((u32)a ^ b) & (b ^ d)) >> 31
s_mulk_i32                | u32 = k @u32 | (u32)a * b
s_cmpk_eq_i32             | = i32 k | scc = a == b
s_cmpk_lg_i32             | = i32 k | scc = a != b
s_cmpk_gt_i32             | = i32 k | scc = a > b
s_cmpk_ge_i32             | = i32 k | scc = a >= b
s_cmpk_lt_i32             | = i32 k | scc = a < b
s_cmpk_le_i32             | = i32 k | scc = a <= b
s_cmpk_eq_u32             | = u32 ku | scc = a == b
s_cmpk_lg_u32             | = u32 ku | scc = a != b
s_cmpk_gt_u32             | = u32 ku | scc = a > b
s_cmpk_ge_u32             | = u32 ku | scc = a >= b
s_cmpk_lt_u32             | = u32 ku | scc = a < b
s_cmpk_le_u32             | = u32 ku | scc = a <= b

# scalar floats (RDNA3.5 and RDNA4)
s_add_f32                 | f32 = f32 f32 | a + b
s_sub_f32                 | f32 = f32 f32 | a - b
s_mul_f32                 | f32 = f32 f32 | a * b
s_fmac_f32                | f32 = f32 f32 @f32 | __builtin_fmaf(a, b, c)
s_fmamk_f32               | f32 = f32 f32 f32 | __builtin_fmaf(a, b, c)
s_fmaak_f32               | f32 = f32 f32 f32 | __builtin_fmaf(a, b, c)
s_min_f32 s_min_num_f32   | f32 = f32 f32 | min_f32(SPLAT(F32, a), SPLAT(F32, b))[0]
s_max_f32 s_max_num_f32   | f32 = f32 f32 | max_f32(SPLAT(F32, a), SPLAT(F32, b))[0]
s_ceil_f32                | f32 = f32 | __builtin_elementwise_ceil(a)
s_floor_f32               | f32 = f32 | __builtin_elementwise_floor(a)
s_trunc_f32               | f32 = f32 | __builtin_elementwise_trunc(a)
s_rndne_f32               | f32 = f32 | __builtin_elementwise_roundeven(a)
s_cvt_f32_i32             | f32 = i32 | (f32)a
s_cvt_f32_u32             | f32 = u32 | (f32)a
s_cvt_i32_f32             | i32 = f32 | f32_to_i32(SPLAT(F32, a))[0]
s_cvt_u32_f32             | u32 = f32 | f32_to_u32(SPLAT(F32, a))[0]
s_cvt_f16_f32             | f16 = f32 | (f16)a
s_cvt_f32_f16             | f32 = f16 | (f32)a
s_cvt_hi_f32_f16          | f32 = u32 | (f32)BC(f16, (u16)(a >> 16))
s_cvt_pk_rtz_f16_f32      | u32 = f32 f32 | PACK16(BC(U16, f16_rtz(SPLAT(F32, a))), BC(U16, f16_rtz(SPLAT(F32, b))))[0]
s_add_f16                 | f16 = f16 f16 | (f16)((f32)a + (f32)b)
s_sub_f16                 | f16 = f16 f16 | (f16)((f32)a - (f32)b)
s_mul_f16                 | f16 = f16 f16 | (f16)((f32)a * (f32)b)
s_fmac_f16                | f16 = f16 f16 @f16 | fma_f16(SPLAT(F16, a), SPLAT(F16, b), SPLAT(F16, c))[0]
s_min_f16 s_min_num_f16   | f16 = f16 f16 | min_f16(SPLAT(F16, a), SPLAT(F16, b))[0]
s_max_f16 s_max_num_f16   | f16 = f16 f16 | max_f16(SPLAT(F16, a), SPLAT(F16, b))[0]
s_ceil_f16                | f16 = f16 | __builtin_elementwise_ceil(a)
s_floor_f16               | f16 = f16 | __builtin_elementwise_floor(a)
s_trunc_f16               | f16 = f16 | __builtin_elementwise_trunc(a)
s_rndne_f16               | f16 = f16 | __builtin_elementwise_roundeven(a)
s_cmp_lt_f32              | = f32 f32 | scc = a < b
s_cmp_eq_f32              | = f32 f32 | scc = a == b
s_cmp_le_f32              | = f32 f32 | scc = a <= b
s_cmp_gt_f32              | = f32 f32 | scc = a > b
s_cmp_lg_f32              | = f32 f32 | scc = a < b || a > b
s_cmp_ge_f32              | = f32 f32 | scc = a >= b
s_cmp_o_f32               | = f32 f32 | scc = a == a && b == b
s_cmp_u_f32               | = f32 f32 | scc = a != a || b != b
s_cmp_nge_f32             | = f32 f32 | scc = !(a >= b)
s_cmp_nlg_f32             | = f32 f32 | scc = !(a < b || a > b)
s_cmp_ngt_f32             | = f32 f32 | scc = !(a > b)
s_cmp_nle_f32             | = f32 f32 | scc = !(a <= b)
s_cmp_neq_f32             | = f32 f32 | scc = !(a == b)
s_cmp_nlt_f32             | = f32 f32 | scc = !(a < b)
s_cmp_lt_f16              | = f16 f16 | scc = a < b
s_cmp_eq_f16              | = f16 f16 | scc = a == b
s_cmp_le_f16              | = f16 f16 | scc = a <= b
s_cmp_gt_f16              | = f16 f16 | scc = a > b
s_cmp_lg_f16              | = f16 f16 | scc = a < b || a > b
s_cmp_ge_f16              | = f16 f16 | scc = a >= b
s_cmp_o_f16               | = f16 f16 | scc = a == a && b == b
s_cmp_u_f16               | = f16 f16 | scc = a != a || b != b
s_cmp_nge_f16             | = f16 f16 | scc = !(a >= b)
s_cmp_nlg_f16             | = f16 f16 | scc = !(a < b || a > b)
s_cmp_ngt_f16             | = f16 f16 | scc = !(a > b)
s_cmp_nle_f16             | = f16 f16 | scc = !(a <= b)
s_cmp_neq_f16             | = f16 f16 | scc = !(a == b)
s_cmp_nlt_f16             | = f16 f16 | scc = !(a < b)
""",
)


def _saveexec() -> dict[str, Row]:
    """d = EXEC; EXEC = f(source, EXEC); SCC = EXEC != 0 (RDNA3 16.3 S_AND_SAVEEXEC_B32 and its relatives)."""
    rows: dict[str, Row] = {}
    operators = {
        "and": "a & x",
        "or": "a | x",
        "xor": "a ^ x",
        "nand": "~(a & x)",
        "nor": "~(a | x)",
        "xnor": "~(a ^ x)",
        "and_not0": "~a & x",
        "andn1": "~a & x",
        "or_not0": "~a | x",
        "orn1": "~a | x",
        "and_not1": "a & ~x",
        "andn2": "a & ~x",
        "or_not1": "a | ~x",
        "orn2": "a | ~x",
    }
    for type_, bits in (("u32", "b32"), ("u64", "b64")):
        for name, text in operators.items():
            full = f"s_{name}_saveexec_{bits}"
            rows[full] = Row(full, (type_,), (type_,), text, "RDNA3 16.3, CDNA3 12.3")
            if name in ("and_not0", "and_not1", "andn1", "andn2"):
                full = f"s_{name}_wrexec_{bits}"
                rows[full] = Row(full, (type_,), (type_,), text, "RDNA3 16.3, CDNA3 12.3")
    return rows


SAVEEXEC = _saveexec()
