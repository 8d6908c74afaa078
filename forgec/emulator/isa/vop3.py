# ruff: noqa: E501 (a row of the table is one line)
"""Instructions that only VOP3 and VOP3SD encode: the meaning of each over all lanes."""

from __future__ import annotations

from forgec.emulator.table import table

__all__ = ["VOP3"]

VOP3 = table(
    "RDNA3 16.12, CDNA3 12.11, RDNA4 16.12",
    """
# f32
v_fma_f32                 | f32 = f32 f32 f32 | FMA(a, b, c)
v_fma_dx9_zero_f32 v_fma_legacy_f32 | f32 = f32 f32 f32 | fma_legacy(a, b, c)
v_mad_f32                 | f32 = f32 f32 f32 | flush_f32(flush_f32(a * b) + c)
v_min3_f32 v_min3_num_f32 | f32 = f32 f32 f32 | min_f32(min_f32(a, b), c)
v_max3_f32 v_max3_num_f32 | f32 = f32 f32 f32 | max_f32(max_f32(a, b), c)
v_med3_f32 v_med3_num_f32 | f32 = f32 f32 f32 | med3_f32(a, b, c)
v_maxmin_f32 v_maxmin_num_f32 | f32 = f32 f32 f32 | min_f32(max_f32(a, b), c)
v_minmax_f32 v_minmax_num_f32 | f32 = f32 f32 f32 | max_f32(min_f32(a, b), c)
v_minimum3_f32            | f32 = f32 f32 f32 | minimum_f32(minimum_f32(a, b), c)
v_maximum3_f32            | f32 = f32 f32 f32 | maximum_f32(maximum_f32(a, b), c)
v_div_fixup_f32           | f32 = f32 f32 f32 | div_fixup_f32(a, b, c)
v_div_fmas_f32            | f32 = f32 f32 f32 vcc | div_fmas_f32(a, b, c, e)
v_div_scale_f32           | f32 m = f32 f32 f32 | mask d2; F32 d = div_scale_f32(a, b, c, &d2)
v_cubeid_f32              | f32 = f32 f32 f32 | F32 x = ABSF32(a), y = ABSF32(b), z = ABSF32(c); I32 zmax = (z >= x) & (z >= y), ymax = ~zmax & (y >= x); \
    F32 zid = SELF32(c < 0.0f, SPLAT(F32, 5.0f), SPLAT(F32, 4.0f)), yid = SELF32(b < 0.0f, SPLAT(F32, 3.0f), SPLAT(F32, 2.0f)), \
    xid = SELF32(a < 0.0f, SPLAT(F32, 1.0f), SPLAT(F32, 0.0f)); F32 d = SELF32(zmax, zid, SELF32(ymax, yid, xid))

# f16
v_fma_f16                 | f16 = f16 f16 f16 | fma_f16(a, b, c)
v_mad_f16                 | f16 = f16 f16 f16 | to_f16(to_f32(to_f16(to_f32(a) * to_f32(b))) + to_f32(c))
v_min3_f16 v_min3_num_f16 | f16 = f16 f16 f16 | min_f16(min_f16(a, b), c)
v_max3_f16 v_max3_num_f16 | f16 = f16 f16 f16 | max_f16(max_f16(a, b), c)
v_med3_f16 v_med3_num_f16 | f16 = f16 f16 f16 | to_f16(med3_f32(to_f32(a), to_f32(b), to_f32(c)))
v_maxmin_f16 v_maxmin_num_f16 | f16 = f16 f16 f16 | min_f16(max_f16(a, b), c)
v_minmax_f16 v_minmax_num_f16 | f16 = f16 f16 f16 | max_f16(min_f16(a, b), c)
v_div_fixup_f16           | f16 = f16 f16 f16 | to_f16(div_fixup_f32(to_f32(a), to_f32(b), to_f32(c)))
v_pack_b32_f16            | u32 = f16 f16 | PACK16(BC(U16, a), BC(U16, b))
v_dot2_f16_f16            | f16 = pf16raw pf16raw f16 | f64_to_f16(CV(to_f32(BC(F16, LOW16(a))), F64) * CV(to_f32(BC(F16, LOW16(b))), F64) + \
    CV(to_f32(BC(F16, HIGH16(a))), F64) * CV(to_f32(BC(F16, HIGH16(b))), F64) + CV(c, F64))
v_dot2_bf16_bf16          | u16 = pf16raw pf16raw u16 | f32_to_bf16(CV(CV(bf16_to_f32(LOW16(a)), F64) * CV(bf16_to_f32(LOW16(b)), F64) + \
    CV(bf16_to_f32(HIGH16(a)), F64) * CV(bf16_to_f32(HIGH16(b)), F64) + CV(bf16_to_f32(c), F64), F32))

# f64
v_fma_f64                 | f64 = f64 f64 f64 | FMA(a, b, c)
v_div_fixup_f64           | f64 = f64 f64 f64 | div_fixup_f64(a, b, c)
v_div_fmas_f64            | f64 = f64 f64 f64 vcc | div_fmas_f64(a, b, c, e)
v_div_scale_f64           | f64 m = f64 f64 f64 | mask d2; F64 d = div_scale_f64(a, b, c, &d2)

# integers
v_mul_lo_u32              | u32 = u32 u32 | a * b
v_mul_hi_u32              | u32 = u32 u32 | mulhi_u32(a, b)
v_mul_hi_i32              | i32 = i32 i32 | mulhi_i32(a, b)
v_mad_i32_i24             | i32 = i32 i32 i32 | sext_bits(a, 24) * sext_bits(b, 24) + c
v_mad_u32_u24             | u32 = u32 u32 u32 | (a & 0xffffffu) * (b & 0xffffffu) + c
v_mad_u32_u16             | u32 = u16 u16 u32 | CV(a, U32) * CV(b, U32) + c
v_mad_i32_i16             | i32 = i16 i16 i32 | CV(a, I32) * CV(b, I32) + c
v_mad_u64_u32 v_mad_co_u64_u32 | u64 m = u32 u32 u64 | U64 p = CV(a, U64) * CV(b, U64); U64 d = p + c; mask d2 = BITS(d < p)
v_mad_i64_i32 v_mad_co_i64_i32 | i64 m = i32 i32 i64 | I64 p = CV(a, I64) * CV(b, I64); I64 d = (I64)((U64)p + (U64)c); \
    mask d2 = BITS(((p ^ d) & (c ^ d)) < 0L)
v_mad_u16 v_mad_legacy_u16 | u16 = u16 u16 u16 | (U16)(a * b + c)
v_mad_i16 v_mad_legacy_i16 | i16 = i16 i16 i16 | (I16)(a * b + c)
v_bfe_u32                 | u32 = u32 u32 u32 | U32 n = c & 31u; U32 d = (a >> (b & 31u)) & ((1u << n) - 1u)
v_bfe_i32                 | i32 = u32 u32 u32 | U32 n = c & 31u; U32 x = (a >> (b & 31u)) & ((1u << n) - 1u); U32 s = (32u - n) & 31u; \
    I32 d = (I32)SEL32(n == 0u, SPLAT(U32, 0), (U32)((I32)(x << s) >> (I32)s))
v_bfi_b32                 | u32 = u32 u32 u32 | (a & b) | (~a & c)
v_bfm_b32                 | u32 = u32 u32 | ((1u << (a & 31u)) - 1u) << (b & 31u)
v_lerp_u8                 | u32 = u32 u32 u32 | ((a & 0xfefefefeu) >> 1) + ((b & 0xfefefefeu) >> 1) + ((((a & b) | ((a | b) & c))) & 0x01010101u)
v_alignbit_b32            | u32 = u32 u32 u32 | CV(pair64(b, a) >> (CV(c, U64) & 31UL), U32)
v_alignbyte_b32           | u32 = u32 u32 u32 | CV(pair64(b, a) >> ((CV(c, U64) & 3UL) * 8UL), U32)
v_perm_b32                | u32 = u32 u32 u32 | perm_bytes(a, b, c)
v_sad_u8                  | u32 = u32 u32 u32 | c + sad_u8(a, b)
v_sad_hi_u8               | u32 = u32 u32 u32 | c + (sad_u8(a, b) << 16)
v_sad_u16                 | u32 = u32 u32 u32 | U32 al = a & 0xffffu, bl = b & 0xffffu, ah = a >> 16, bh = b >> 16; \
    U32 d = c + (MAX(al, bl) - MIN(al, bl)) + (MAX(ah, bh) - MIN(ah, bh))
v_sad_u32                 | u32 = u32 u32 u32 | c + (MAX(a, b) - MIN(a, b))
v_min3_i32                | i32 = i32 i32 i32 | MIN(MIN(a, b), c)
v_max3_i32                | i32 = i32 i32 i32 | MAX(MAX(a, b), c)
v_med3_i32                | i32 = i32 i32 i32 | MED3(a, b, c)
v_min3_u32                | u32 = u32 u32 u32 | MIN(MIN(a, b), c)
v_max3_u32                | u32 = u32 u32 u32 | MAX(MAX(a, b), c)
v_med3_u32                | u32 = u32 u32 u32 | MED3(a, b, c)
v_min3_i16                | i16 = i16 i16 i16 | MIN(MIN(a, b), c)
v_max3_i16                | i16 = i16 i16 i16 | MAX(MAX(a, b), c)
v_med3_i16                | i16 = i16 i16 i16 | MED3(a, b, c)
v_min3_u16                | u16 = u16 u16 u16 | MIN(MIN(a, b), c)
v_max3_u16                | u16 = u16 u16 u16 | MAX(MAX(a, b), c)
v_med3_u16                | u16 = u16 u16 u16 | MED3(a, b, c)
v_maxmin_i32              | i32 = i32 i32 i32 | MIN(MAX(a, b), c)
v_minmax_i32              | i32 = i32 i32 i32 | MAX(MIN(a, b), c)
v_maxmin_u32              | u32 = u32 u32 u32 | MIN(MAX(a, b), c)
v_minmax_u32              | u32 = u32 u32 u32 | MAX(MIN(a, b), c)
v_xor3_b32                | u32 = u32 u32 u32 | a ^ b ^ c
v_or3_b32                 | u32 = u32 u32 u32 | a | b | c
v_and_or_b32              | u32 = u32 u32 u32 | (a & b) | c
v_add3_u32                | u32 = u32 u32 u32 | a + b + c
v_xad_u32                 | u32 = u32 u32 u32 | (a ^ b) + c
v_lshl_add_u32            | u32 = u32 u32 u32 | (a << (b & 31u)) + c
v_lshl_add_u64            | u64 = u64 u32 u64 | (a << CV(b & 7u, U64)) + c
v_add_lshl_u32            | u32 = u32 u32 u32 | (a + b) << (c & 31u)
v_lshl_or_b32             | u32 = u32 u32 u32 | (a << (b & 31u)) | c
v_bcnt_u32_b32            | u32 = u32 u32 | __builtin_elementwise_popcount(a) + b
v_mbcnt_lo_u32_b32        | u32 = u32 u32 | b + mbcnt_lo(a)
v_mbcnt_hi_u32_b32        | u32 = u32 u32 | b + mbcnt_hi(a)
v_add_nc_i32 v_add_i32    | i32 = i32 i32 | (I32)((U32)a + (U32)b)
v_sub_nc_i32 v_sub_i32    | i32 = i32 i32 | (I32)((U32)a - (U32)b)
v_add_nc_i16 v_add_i16    | i16 = i16 i16 | (I16)(a + b)
v_sub_nc_i16 v_sub_i16    | i16 = i16 i16 | (I16)(a - b)
v_bitop3_b32              | u32 = u32 u32 u32 | bitop3(a, b, c, $BITOP3)
v_prng_b32                | u32 = u32 | SEL32((I32)a < 0, (a << 1) ^ 0xc5u, a << 1)

# packing conversions
v_cvt_pk_i16_i32          | u32 = i32 i32 | PACK16((U16)CV(MAX(MIN(a, SPLAT(I32, 32767)), SPLAT(I32, -32768)), I16), (U16)CV(MAX(MIN(b, SPLAT(I32, 32767)), SPLAT(I32, -32768)), I16))
v_cvt_pk_u16_u32          | u32 = u32 u32 | PACK16(CV(MIN(a, SPLAT(U32, 0xffffu)), U16), CV(MIN(b, SPLAT(U32, 0xffffu)), U16))
v_cvt_pk_i16_f32          | u32 = f32 f32 | PACK16((U16)f32_to_i16_sat(a), (U16)f32_to_i16_sat(b))
v_cvt_pk_u16_f32          | u32 = f32 f32 | PACK16(f32_to_u16_sat(a), f32_to_u16_sat(b))
v_cvt_pk_norm_i16_f32 v_cvt_pknorm_i16_f32 | u32 = f32 f32 | PACK16((U16)snorm16(a), (U16)snorm16(b))
v_cvt_pk_norm_u16_f32 v_cvt_pknorm_u16_f32 | u32 = f32 f32 | PACK16(unorm16(a), unorm16(b))
v_cvt_pk_norm_i16_f16 v_cvt_pknorm_i16_f16 | u32 = f16 f16 | PACK16((U16)snorm16(to_f32(a)), (U16)snorm16(to_f32(b)))
v_cvt_pk_norm_u16_f16 v_cvt_pknorm_u16_f16 | u32 = f16 f16 | PACK16(unorm16(to_f32(a)), unorm16(to_f32(b)))
v_cvt_pk_u8_f32           | u32 = f32 u32 u32 | U32 s = (b & 3u) * 8u; U32 x = MIN(f32_to_u32(__builtin_elementwise_roundeven(a)), SPLAT(U32, 255)); \
    U32 d = (c & ~(255u << s)) | (x << s)
v_cvt_pk_bf16_f32         | u32 = f32 f32 | PACK16(f32_to_bf16(a), f32_to_bf16(b))
v_cvt_pk_f16_f32          | u32 = f32 f32 | PACK16(BC(U16, to_f16(a)), BC(U16, to_f16(b)))

# saturating integer forms (the clamp bit)
v_add_nc_u32:clamp v_add_u32:clamp | u32 = u32 u32 | SAT_ADD(a, b)
v_sub_nc_u32:clamp v_sub_u32:clamp | u32 = u32 u32 | SAT_SUB(a, b)
v_subrev_nc_u32:clamp v_subrev_u32:clamp | u32 = u32 u32 | SAT_SUB(b, a)
v_add_nc_i32:clamp v_add_i32:clamp | i32 = i32 i32 | SAT_ADD(a, b)
v_sub_nc_i32:clamp v_sub_i32:clamp | i32 = i32 i32 | SAT_SUB(a, b)
v_add_nc_u16:clamp v_add_u16:clamp | u16 = u16 u16 | SAT_ADD(a, b)
v_sub_nc_u16:clamp v_sub_u16:clamp | u16 = u16 u16 | SAT_SUB(a, b)
v_add_nc_i16:clamp v_add_i16:clamp | i16 = i16 i16 | SAT_ADD(a, b)
v_sub_nc_i16:clamp v_sub_i16:clamp | i16 = i16 i16 | SAT_SUB(a, b)
v_mad_i32_i24:clamp       | i32 = i32 i32 i32 | I64 p = CV(sext_bits(a, 24), I64) * CV(sext_bits(b, 24), I64) + CV(c, I64); \
    I32 d = CV(MAX(MIN(p, SPLAT(I64, 2147483647L)), SPLAT(I64, -2147483648L)), I32)
v_mad_u32_u24:clamp       | u32 = u32 u32 u32 | CV(MIN(CV(a & 0xffffffu, U64) * CV(b & 0xffffffu, U64) + CV(c, U64), SPLAT(U64, 0xffffffffUL)), U32)
""",
)
