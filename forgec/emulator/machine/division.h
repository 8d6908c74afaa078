/* Helpers of single instructions that are more than an expression. Included by translated kernels after wave.h. */
#ifndef FORGEC_DIVISION_H
#define FORGEC_DIVISION_H

/* RDNA3 16.12 V_DIV_FIXUP_F32: a quotient, b denominator, c numerator. */
INLINE F32 div_fixup_f32(F32 a, F32 b, F32 c) {
  U32 sign = ((U32)b ^ (U32)c) & 0x80000000u;
  I32 eb = (I32)((U32)b >> 23 & 255u), ec = (I32)((U32)c >> 23 & 255u);
  F32 inf = (F32)SPLAT(U32, 0x7f800000u);
  F32 r = (F32)(sign | (U32)ABSF32(a));
  /* a quotient of infinity or NaN is an overflow; the document names S1 here, which the rule below covers */
  r = SELF32(((U32)a & 0x7f800000u) == 0x7f800000u, (F32)(sign | 0x7f800000u), r);
  r = SELF32((ec - eb) < -150, (F32)sign, r); /* underflow: the hardware rounds; the division chain never needs it */
  r = SELF32((ABSF32(b) == inf) | (c == 0.0f), (F32)sign, r);
  r = SELF32((b == 0.0f) | (ABSF32(c) == inf), (F32)(sign | 0x7f800000u), r);
  r = SELF32(((b == 0.0f) & (c == 0.0f)) | ((ABSF32(b) == inf) & (ABSF32(c) == inf)), (F32)SPLAT(U32, 0xffc00000u), r);
  r = SELF32(b != b, (F32)((U32)b | 0x400000u), r);
  return SELF32(c != c, (F32)((U32)c | 0x400000u), r);
}

INLINE F64 div_fixup_f64(F64 a, F64 b, F64 c) {
  U64 sign = ((U64)b ^ (U64)c) & 0x8000000000000000UL;
  F64 inf = (F64)SPLAT(U64, 0x7ff0000000000000UL);
  I64 eb = (I64)((U64)b >> 52 & 0x7ffUL), ec = (I64)((U64)c >> 52 & 0x7ffUL);
  F64 r = (F64)(sign | (U64)ABSF64(a));
  r = SELF64(((U64)a & 0x7ff0000000000000UL) == 0x7ff0000000000000UL, (F64)(sign | 0x7ff0000000000000UL), r);
  r = SELF64((ec - eb) < -1075L, (F64)sign, r);
  r = SELF64((ABSF64(b) == inf) | (c == 0.0), (F64)sign, r);
  r = SELF64((b == 0.0) | (ABSF64(c) == inf), (F64)(sign | 0x7ff0000000000000UL), r);
  r = SELF64(((b == 0.0) & (c == 0.0)) | ((ABSF64(b) == inf) & (ABSF64(c) == inf)), (F64)SPLAT(U64, 0xfff8000000000000UL), r);
  r = SELF64(b != b, (F64)((U64)b | 0x8000000000000UL), r);
  return SELF64(c != c, (F64)((U64)c | 0x8000000000000UL), r);
}

/* RDNA3 16.12 V_DIV_FMAS_F32: a fused multiply-add whose result undoes the scaling of V_DIV_SCALE where VCC is set, in
 * one rounding. The document gives the factor 2^32; what undoes the scaling is 2^64 or 2^-64 (f64: 2^128 or 2^-128),
 * by whether the quotient estimate is large or small. */
INLINE F32 div_fmas_f32(F32 a, F32 b, F32 c, mask vcc) {
  F64 x = CV(a, F64) * CV(b, F64) + CV(c, F64);
  F64 s = SELF64(CV(ABSF32(c) > 1.0f, I64), SPLAT(F64, 18446744073709551616.0), SPLAT(F64, 5.42101086242752217e-20));
  return SELF32(lanes32(vcc), CV(x * s, F32), FMA(a, b, c));
}

INLINE F64 div_fmas_f64(F64 a, F64 b, F64 c, mask vcc) {
  F64 x = FMA(a, b, c), up = x * 3.4028236692093846346e38, y = x * 2.9387358770557187699e-39;
  /* y was rounded twice if it is denormal: compare what is missing with half a step of denormals, scaled up */
  F64 rest = FMA(a, b, c - y * 3.4028236692093846346e38);
  F64 half = (F64)SPLAT(U64, (u64)(1023 - 947) << 52); /* 2^-947 */
  I64 odd = ((U64)y & 1UL) != 0UL;
  I64 more = (rest > half) | ((rest == half) & odd), less = (rest < -half) | ((rest == -half) & odd);
  F64 step = (F64)SPLAT(U64, 1UL);
  y = SELF64(more, y + step, SELF64(less, y - step, y));
  F64 r = SELF64(ABSF64(c) > 1.0, up, y);
  return SELF64(lanes64(vcc), r, x);
}

/* RDNA3 16.12 V_DIV_SCALE_F32: a is the operand to scale (b or c), b denominator, c numerator. */
INLINE F32 div_scale_f32(F32 a, F32 b, F32 c, mask *vcc) {
  I32 eb = (I32)((U32)b >> 23 & 255u), ec = (I32)((U32)c >> 23 & 255u);
  F32 up = a * 18446744073709551616.0f, down = a * 5.42101086242752217e-20f; /* 2^64, 2^-64 */
  I32 is_b = (U32)a == (U32)b, is_c = (U32)a == (U32)c;
  I32 zero = (b == 0.0f) | (c == 0.0f);
  I32 far = (ec - eb) >= 96;
  I32 den_b = (eb == 0) & ~(b == 0.0f);
  F32 inv_b = 1.0f / b, q = c / b;
  I32 den_inv = (((U32)inv_b & 0x7f800000u) == 0u) & ~(inv_b == 0.0f);
  I32 den_q = (((U32)q & 0x7f800000u) == 0u) & ~(q == 0.0f);
  I32 small_c = ec <= 23;
  I32 rest = ~zero;
  I32 c1 = rest & far; rest &= ~far;
  I32 c2 = rest & den_b; rest &= ~den_b;
  I32 c3 = rest & den_inv & den_q; rest &= ~(den_inv & den_q);
  I32 c4 = rest & den_inv; rest &= ~den_inv;
  I32 c5 = rest & den_q; rest &= ~den_q;
  I32 c6 = rest & small_c;
  F32 r = a;
  r = SELF32(c6, up, r);
  r = SELF32(c5 & is_c, up, r);
  r = SELF32(c4, down, r);
  r = SELF32(c3 & is_b, down, r); /* the document says up, which would overflow */
  r = SELF32(c2, up, r);
  r = SELF32(c1 & is_b, up, r);
  r = SELF32(zero, (F32)SPLAT(U32, 0xffc00000u), r);
  *vcc = BITS(c1 | c3 | c5);
  return r;
}

INLINE F64 div_scale_f64(F64 a, F64 b, F64 c, mask *vcc) {
  I64 eb = (I64)((U64)b >> 52 & 0x7ffUL), ec = (I64)((U64)c >> 52 & 0x7ffUL);
  F64 up = a * 3.4028236692093846346e38, down = a * 2.9387358770557187699e-39; /* 2^128, 2^-128 */
  I64 is_b = (U64)a == (U64)b, is_c = (U64)a == (U64)c;
  I64 zero = (b == 0.0) | (c == 0.0);
  I64 far = (ec - eb) >= 768L;
  I64 den_b = (eb == 0L) & ~(b == 0.0);
  F64 inv_b = 1.0 / b, q = c / b;
  I64 den_inv = (((U64)inv_b & 0x7ff0000000000000UL) == 0UL) & ~(inv_b == 0.0);
  I64 den_q = (((U64)q & 0x7ff0000000000000UL) == 0UL) & ~(q == 0.0);
  I64 small_c = ec <= 53L;
  I64 rest = ~zero;
  I64 c1 = rest & far; rest &= ~far;
  I64 c2 = rest & den_b; rest &= ~den_b;
  I64 c3 = rest & den_inv & den_q; rest &= ~(den_inv & den_q);
  I64 c4 = rest & den_inv; rest &= ~den_inv;
  I64 c5 = rest & den_q; rest &= ~den_q;
  I64 c6 = rest & small_c;
  F64 r = a;
  r = SELF64(c6, up, r);
  r = SELF64(c5 & is_c, up, r);
  r = SELF64(c4, down, r);
  r = SELF64(c3 & is_b, down, r);
  r = SELF64(c2, up, r);
  r = SELF64(c1 & is_b, up, r);
  r = SELF64(zero, (F64)SPLAT(U64, 0xfff8000000000000UL), r);
  *vcc = BITS(c1 | c3 | c5);
  return r;
}

/* RDNA3 16.12 V_PERM_B32: bytes 0..3 of b, 4..7 of a, sign fills 8..11, 12 zero, above 0xff. */
INLINE U32 perm_bytes(U32 a, U32 b, U32 c) {
  U64 all = pair64(b, a);
  U32 r = SPLAT(U32, 0);
  for (int i = 0; i < 4; ++i) {
    U32 s = c >> (8 * i) & 255u;
    U32 x = CV(all >> (CV(s & 7u, U64) * 8UL), U32) & 255u;
    U32 sign_at = SEL32(s == 8u, SPLAT(U32, 15), SEL32(s == 9u, SPLAT(U32, 31), SEL32(s == 10u, SPLAT(U32, 47), SPLAT(U32, 63))));
    U32 sign = (0u - (CV(all >> CV(sign_at, U64), U32) & 1u)) & 255u;
    x = SEL32((s >= 8u) & (s <= 11u), sign, x);
    x = SEL32(s == 12u, SPLAT(U32, 0), x);
    x = SEL32(s > 12u, SPLAT(U32, 255), x);
    r |= x << (8 * i);
  }
  return r;
}

INLINE U32 sad_u8(U32 a, U32 b) {
  U32 r = SPLAT(U32, 0);
  for (int i = 0; i < 32; i += 8) {
    U32 x = a >> i & 255u, y = b >> i & 255u;
    r += MAX(x, y) - MIN(x, y);
  }
  return r;
}

INLINE U32 mbcnt_lo(U32 a) {
  U32 l = lane_ids();
  U32 below = SEL32(l >= 32u, SPLAT(U32, 0xffffffffu), (1u << (l & 31u)) - 1u);
  return __builtin_elementwise_popcount(a & below);
}

INLINE U32 mbcnt_hi(U32 a) {
  U32 l = lane_ids();
  U32 below = SEL32(l >= 32u, (1u << (l & 31u)) - 1u, SPLAT(U32, 0));
  return __builtin_elementwise_popcount(a & below);
}

INLINE U32 bitop3(U32 a, U32 b, U32 c, u32 truth) {
  U32 r = SPLAT(U32, 0);
  for (u32 i = 0; i < 8; ++i)
    if (truth >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}

INLINE I16 snorm16(F32 a) {
  F32 x = MAX(MIN(SELF32(a == a, a, SPLAT(F32, 0.0f)), SPLAT(F32, 1.0f)), SPLAT(F32, -1.0f));
  return CV(CV(__builtin_elementwise_roundeven(x * 32767.0f), I32), I16);
}

INLINE U16 unorm16(F32 a) {
  F32 x = MAX(MIN(SELF32(a == a, a, SPLAT(F32, 0.0f)), SPLAT(F32, 1.0f)), SPLAT(F32, 0.0f));
  return CV(CV(__builtin_elementwise_roundeven(x * 65535.0f), I32), U16);
}

/* V_CMP_CLASS: bit 0 sNaN, 1 qNaN, 2 -inf, 3 -normal, 4 -denormal, 5 -0, 6 +0, 7 +denormal, 8 +normal, 9 +inf. */
INLINE I32 class_bits(U32 sign, U32 exponent_max, U32 exponent_zero, U32 fraction_zero, U32 quiet, U32 b) {
  U32 kind = SEL32(exponent_max, SEL32(fraction_zero, SPLAT(U32, 0), SPLAT(U32, 9)),
                   SEL32(exponent_zero, SEL32(fraction_zero, SPLAT(U32, 3), SPLAT(U32, 2)), SPLAT(U32, 1)));
  U32 bit = SEL32(sign, kind + 2u, 9u - kind);
  bit = SEL32(kind == 9u, SEL32(quiet, SPLAT(U32, 1), SPLAT(U32, 0)), bit);
  return (b >> bit & 1u) != 0u;
}

INLINE I32 class_f32(F32 a, U32 b) {
  U32 x = (U32)a, e = x >> 23 & 255u;
  return class_bits((U32)((I32)x < 0), (U32)(e == 255u), (U32)(e == 0u), (U32)((x & 0x7fffffu) == 0u), (U32)((x & 0x400000u) != 0u), b);
}

INLINE I32 class_f16(F16 a, U32 b) {
  U32 x = CV(BC(U16, a), U32), e = x >> 10 & 31u;
  return class_bits((U32)((x & 0x8000u) != 0u), (U32)(e == 31u), (U32)(e == 0u), (U32)((x & 0x3ffu) == 0u), (U32)((x & 0x200u) != 0u), b);
}

INLINE I32 class_f64(F64 a, U32 b) {
  U64 x = (U64)a, e = x >> 52 & 0x7ffUL;
  return class_bits((U32)CV((I64)x < 0L, I32), (U32)CV(e == 0x7ffUL, I32), (U32)CV(e == 0UL, I32),
                    (U32)CV((x & 0xfffffffffffffUL) == 0UL, I32), (U32)CV((x & 0x8000000000000UL) != 0UL, I32), b);
}
#endif
