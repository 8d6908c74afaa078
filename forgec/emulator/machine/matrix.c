/* Matrix instructions: WMMA of gfx11 and gfx12, MFMA of gfx9. Included by vmath.c.
 *
 * Layouts are those of the ISA documents (RDNA3 7.9, RDNA4 7.9, CDNA3 7.1). Products are exact in double or 64-bit
 * integers, summed there, and rounded once to the destination type.
 */

/* Element types, as the translator passes them. */
enum { E_F32, E_F16, E_BF16, E_I8, E_I4, E_F64, E_FP8, E_BF8 };

static f64 fp8_value(u32 b, int mantissa_bits, int bias) { /* the FNUZ forms of gfx942 */
  u32 e = (b & 0x7f) >> mantissa_bits, m = b & ((1u << mantissa_bits) - 1);
  if (b == 0x80) return __builtin_nan("");
  f64 x = e ? 1.0 + (f64)m / (1 << mantissa_bits) : (f64)m / (1 << mantissa_bits);
  i32 p = (i32)(e ? e : 1) - bias;
  for (; p > 0; --p) x *= 2;
  for (; p < 0; ++p) x *= 0.5;
  return b & 0x80 ? -x : x;
}

static f64 fp8_ocp(u32 b, int mantissa_bits, int bias) { /* the OCP forms of gfx950 and gfx12 */
  u32 e = (b & 0x7f) >> mantissa_bits, m = b & ((1u << mantissa_bits) - 1);
  if (mantissa_bits == 3 && (b & 0x7f) == 0x7f) return __builtin_nan("");
  if (mantissa_bits == 2 && e == 31) return m ? __builtin_nan("") : b & 0x80 ? -__builtin_inf() : __builtin_inf();
  f64 x = e ? 1.0 + (f64)m / (1 << mantissa_bits) : (f64)m / (1 << mantissa_bits);
  i32 p = (i32)(e ? e : 1) - bias;
  for (; p > 0; --p) x *= 2;
  for (; p < 0; ++p) x *= 0.5;
  return b & 0x80 ? -x : x;
}

/* The elements that every lane holds in registers reg..., element k of lane l at out[k][l]. */
static void decode(const Wave *w, int reg, u32 count, u32 type, int sign, int ocp, f64 out[][W]) {
  const U32 *v = w->v + reg;
  for (u32 k = 0; k < count; ++k) {
    F64 x;
    switch (type) {
      case E_F64: x = (F64)pair64(v[2 * k], v[2 * k + 1]); break;
      case E_F32: x = CV((F32)v[k], F64); break;
      case E_F16: x = CV(BC(F16, CV(v[k / 2] >> 16 * (k & 1), U16)), F64); break;
      case E_BF16: x = CV((F32)((v[k / 2] >> 16 * (k & 1)) << 16), F64); break;
      case E_I8: {
        U32 b = v[k / 4] << (24 - 8 * (k & 3));
        x = sign ? CV((I32)b >> 24, F64) : CV(b >> 24, F64);
        break;
      }
      case E_I4: {
        U32 b = v[k / 8] << (28 - 4 * (k & 7));
        x = sign ? CV((I32)b >> 28, F64) : CV(b >> 28, F64);
        break;
      }
      default:
        for (u32 l = 0; l < W; ++l) {
          u32 b = v[k / 4][l] >> 8 * (k & 3) & 255;
          if (type == E_FP8) x[l] = ocp ? fp8_ocp(b, 3, 7) : fp8_value(b, 3, 8);
          else x[l] = ocp ? fp8_ocp(b, 2, 15) : fp8_value(b, 2, 16);
        }
    }
    memcpy(out[k], &x, sizeof x);
  }
}

/* sums[row][column] of m * m products of length k; a and b are [k][row]. */
static void products(u32 m, u32 k_total, const f64 *a, const f64 *b, f64 *sums) {
  for (u32 row = 0; row < m; ++row) {
    f64 *s = sums + row * m;
    for (u32 c = 0; c < m; ++c) s[c] = 0;
    for (u32 k = 0; k < k_total; ++k) {
      f64 x = a[k * m + row];
      const f64 *y = b + k * m;
      for (u32 c = 0; c < m; ++c) s[c] += x * y[c];
    }
  }
}

static u32 half_bits(f64 x, int bf16) {
  f32 f = (f32)x;
  if (bf16) return bf16_round(f);
  f16 h = (f16)f;
  u16 b;
  memcpy(&b, &h, 2);
  return b;
}

static i32 int_result(i64 x, int clamp) {
  if (clamp) x = x > 2147483647L ? 2147483647L : x < -2147483648L ? -2147483648L : x;
  return (i32)x;
}

/* op: bits 0..3 A type, 4..7 B type, 8..11 D type (E_I8 = i32), 12..19 K, 20 gfx12 layout.
 * flags: 1 A signed, 2 B signed, 4 clamp, 8 high half of D and C (gfx11 16-bit D), 16 negate A lo, 32 negate B lo,
 * 64 negate A hi, 128 negate B hi, 256 negate C, 512 absolute C. c < 0: every element of C is c_const. */
void emu_wmma(Wave *w, int op, int d, int a, int b, int c, u64 c_const, int flags) {
  int ta = op & 15, tb = op >> 4 & 15, td = op >> 8 & 15, gfx12 = op >> 20 & 1, floats = ta != E_I8 && ta != E_I4;
  u32 k_total = op >> 12 & 255, held = gfx12 ? k_total / 2 : k_total;
  static __thread f64 da[64][W], db[64][W], ea[64 * 16], eb[64 * 16], sums[16 * 16];
  decode(w, a, held, (u32)ta, flags & 1, 1, da);
  decode(w, b, held, (u32)tb, flags >> 1 & 1, 1, db);
  for (u32 k = 0; k < k_total; ++k) {
    /* gfx11 holds every row twice, gfx12 splits K between the halves of the wave */
    u32 lanes = gfx12 ? 16 * (k / held) : 0, at = k % held;
    f64 sa = floats && flags >> (at & 1 ? 6 : 4) & 1 ? -1 : 1, sb = floats && flags >> (at & 1 ? 7 : 5) & 1 ? -1 : 1;
    for (u32 i = 0; i < 16; ++i) {
      ea[k * 16 + i] = sa * da[at][lanes + i];
      eb[k * 16 + i] = sb * db[at][lanes + i];
    }
  }
  products(16, k_total, ea, eb, sums);
  U32 out[8];
  int packed = td == E_F16 || td == E_BF16;
  for (u32 r = 0; r < 8; ++r) {
    u32 reg = packed && gfx12 ? r / 2 : r, shift = packed ? (gfx12 ? 16 * (r & 1) : flags & 8 ? 16 : 0) : 0;
    if (!(packed && gfx12 && r & 1)) out[reg] = packed ? w->v[d + (i32)reg] : SPLAT(U32, 0);
    for (u32 l = 0; l < 32; ++l) {
      u32 half = l / 16, col = l & 15, row = gfx12 ? r + 8 * half : 2 * r + half;
      u32 raw = c < 0 ? (u32)c_const : w->v[c + (i32)reg][l];
      f64 sum = sums[row * 16 + col];
      if (!floats) {
        out[reg][l] = (u32)int_result((i64)sum + (i64)(i32)raw, flags >> 2 & 1);
        continue;
      }
      f64 base = !packed ? as_f32(raw) : 0;
      if (packed) {
        u32 h = c < 0 ? raw & 0xffff : raw >> shift & 0xffff;
        u16 hb = (u16)h;
        f16 hf;
        memcpy(&hf, &hb, 2);
        base = td == E_F16 ? (f64)hf : as_f32((u64)(h << 16));
      }
      if (flags & 512) base = __builtin_fabs(base);
      if (flags & 256) base = -base;
      if (!packed) out[reg][l] = (u32)bits_f32((f32)(sum + base));
      else out[reg][l] = (out[reg][l] & ~(0xffffu << shift)) | half_bits(sum + base, td == E_BF16) << shift;
    }
  }
  u32 n = packed && gfx12 ? 4 : 8;
  u64 ok = ~0UL;
  for (u32 r = 0; r < n; ++r) w->v[d + (i32)r] = out[r];
  if (w->L->checks) {
    u32 na = (gfx12 ? k_total / 2 : k_total) * (ta == E_I4 ? 4 : ta == E_F16 || ta == E_BF16 ? 16 : 8) / 32;
    for (u32 r = 0; r < na; ++r) ok &= DV(a + (i32)r) & DV(b + (i32)r);
    for (u32 r = 0; r < n && c >= 0 && !(packed && !gfx12); ++r) ok &= DV(c + (i32)r);
    ok = (ok & 0xffffffffUL) == 0xffffffffUL ? ~0UL : 0;
    for (u32 r = 0; r < n; ++r) DSET(d + (i32)r, ok, ~0UL);
  }
}

/* op: bits 0..3 A type, 4..7 B type, 8..15 M (= N), 16..23 blocks, 24..30 elements a lane holds.
 * c < 0: every element of C is c_const. EXEC is ignored (CDNA3 7.1). flags 1: gfx950 number formats. */
void emu_mfma(Wave *w, int op, int d, int a, int b, int c, u64 c_const, int flags) {
  u32 ta = op & 15, tb = op >> 4 & 15, m = op >> 8 & 255, blocks = op >> 16 & 255, per_lane = op >> 24 & 127;
  u32 groups = 64 / (m * blocks), k_total = per_lane * groups;
  int ints = ta == E_I8, wide = ta == E_F64;
  static __thread f64 da[64][W], db[64][W], ea[16][64 * 32], eb[16][64 * 32], sums[16][32 * 32];
  decode(w, a, per_lane, ta, 1, flags & 1, da);
  decode(w, b, per_lane, tb, 1, flags & 1, db);
  if (wide && m == 4) k_total = 4;
  for (u32 l = 0; l < W; ++l) {
    u32 i = l % m, group = l / m % groups, block = l / (m * groups);
    if (wide && m == 4) { /* 4x4x4 in 4 blocks: k is the highest lane field */
      block = l / 4 % 4;
      group = l / 16;
    }
    for (u32 k = 0; k < per_lane; ++k) {
      ea[block][(group * per_lane + k) * m + i] = da[k][l];
      eb[block][(group * per_lane + k) * m + i] = db[k][l];
    }
  }
  for (u32 block = 0; block < blocks; ++block) products(m, k_total, ea[block], eb[block], sums[block]);
  u32 per_block = m == 32 ? 16 : wide && m == 4 ? 1 : 4, n = m == 4 ? per_block : per_block * blocks;
  static __thread U32 out[32];
  for (u32 r = 0; r < n; ++r) {
    for (u32 l = 0; l < W; ++l) {
      u32 col = l % m, row, block = m == 4 ? (wide ? l / 4 % 4 : l / 4) : r / per_block, q = r % per_block;
      if (m == 32) row = 8 * (q / 4) + 4 * (l / 32) + q % 4;
      else if (m == 16) row = wide ? l / 16 + 4 * q : 4 * (l / 16) + q;
      else row = wide ? l / 16 : q;
      f64 sum = sums[block][row * m + col];
      if (wide) {
        f64 base = c < 0 ? as_f64(c_const) : as_f64((u64)w->v[c + (i32)(2 * r)][l] | (u64)w->v[c + (i32)(2 * r) + 1][l] << 32);
        u64 x = bits_f64(base + sum);
        out[2 * r][l] = (u32)x;
        out[2 * r + 1][l] = (u32)(x >> 32);
        continue;
      }
      u32 raw = c < 0 ? (u32)c_const : w->v[c + (i32)r][l];
      out[r][l] = ints ? (u32)((i64)sum + (i64)(i32)raw) : (u32)bits_f32((f32)(sum + as_f32(raw)));
    }
  }
  if (wide) n *= 2;
  if (w->L->checks) {
    u64 ok = ~0UL;
    u32 na = per_lane * (wide ? 64 : ta == E_F32 ? 32 : ta == E_F16 || ta == E_BF16 ? 16 : 8) / 32;
    for (u32 r = 0; r < na; ++r) ok &= DV(a + (i32)r) & DV(b + (i32)r);
    for (u32 r = 0; r < n && c >= 0; ++r) ok &= DV(c + (i32)r);
    for (u32 r = 0; r < n; ++r) DSET(d + (i32)r, ok + 1 == 0 ? ~0UL : 0UL, ~0UL);
  }
  for (u32 r = 0; r < n; ++r) w->v[d + (i32)r] = out[r];
}
