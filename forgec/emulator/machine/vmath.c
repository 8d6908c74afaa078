/* The transcendental unit: exp2, log2, sine and cosine of every lane, in double precision. Included by engine.c.
 *
 * The hardware promises about one ulp; these are correct to well below one f32 ulp. Denormal inputs and results
 * are flushed, because the f32 unit does not support them (ISA "V_EXP_F32", "V_LOG_F32").
 */

static F64 ldexp_lanes(F64 x, I64 e) { return x * (F64)((e + 1023) << 52); }

F32 emu_exp2(F32 a) {
  a = flush_f32(a);
  F32 t = SELF32(a == a, a, SPLAT(F32, 0.0f));
  t = SELF32(t > 130.0f, SPLAT(F32, 130.0f), t);
  t = SELF32(t < -160.0f, SPLAT(F32, -160.0f), t);
  F64 x = CV(t, F64), n = __builtin_elementwise_roundeven(x), r = (x - n) * 0.69314718055994530942;
  F64 p = SPLAT(F64, 1.0 / 6227020800.0);
  static const f64 c[13] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                            1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
  for (int i = 12; i >= 0; --i) p = FMA(p, r, SPLAT(F64, c[i]));
  F32 y = flush_f32(CV(ldexp_lanes(p, CV(n, I64)), F32));
  return SELF32(a == a, y, a);
}

F32 emu_log2(F32 a) {
  a = flush_f32(a);
  U64 b = (U64)CV(a, F64);
  I64 e = (I64)(b >> 52 & 0x7ffUL) - 1023;
  F64 m = (F64)((b & 0xfffffffffffffUL) | 0x3ff0000000000000UL);
  I64 high = m > 1.41421356237309514547;
  m = SELF64(high, m * 0.5, m);
  e -= high;
  F64 s = (m - 1.0) / (m + 1.0), z = s * s, p = SPLAT(F64, 1.0 / 23);
  for (int k = 21; k >= 1; k -= 2) p = FMA(p, z, SPLAT(F64, 1.0 / k));
  F64 y = CV(e, F64) + p * s * 2.88539008177792681472;
  F32 r = CV(y, F32);
  r = SELF32(a == 0.0f, SPLAT(F32, -__builtin_inff()), r);
  r = SELF32((a < 0.0f) | (a != a), SPLAT(F32, __builtin_nanf("")), r);
  return SELF32(a == __builtin_inff(), a, r);
}

/* sin(2 pi x) for |x| <= 256, else 0 (cosine: 1). */
static F64 sine_of_turns(F64 x) {
  F64 r = x - __builtin_elementwise_roundeven(x);     /* [-1/2, 1/2] */
  F64 f = SELF64(r > 0.25, 0.5 - r, SELF64(r < -0.25, -0.5 - r, r)); /* [-1/4, 1/4] */
  F64 t = f * 6.28318530717958647693, z = t * t, p = SPLAT(F64, 1.0);
  for (int k = 24; k >= 2; k -= 2) p = 1.0 - p * z / (f64)(k * (k + 1));
  return p * t;
}

F32 emu_sin(F32 a) {
  F32 t = SELF32(ABSF32(a) <= 256.0f, flush_f32(a), SPLAT(F32, 0.0f));
  F32 r = CV(sine_of_turns(CV(t, F64)), F32);
  I32 bad = (a != a) | (ABSF32(a) == __builtin_inff());
  return SELF32(bad, SPLAT(F32, __builtin_nanf("")), r);
}

F32 emu_cos(F32 a) {
  F32 t = SELF32(ABSF32(a) <= 256.0f, flush_f32(a), SPLAT(F32, 0.0f));
  F64 x = CV(t, F64);
  F32 r = CV(sine_of_turns(x - __builtin_elementwise_roundeven(x) + 0.25), F32);
  I32 bad = (a != a) | (ABSF32(a) == __builtin_inff());
  return SELF32(bad, SPLAT(F32, __builtin_nanf("")), r);
}

#include "matrix.c"
