// Ordinary C, compiled for the host and for every GPU: both must leave the same words in out[0..15].
// in: 64 random words of this thread. No floating-point contraction: -ffp-contract=off on both sides.

NOINLINE u32 rotate(u32 x, int n) { return x << n | x >> (32 - n); }

NOINLINE u32 sha_like(const u32* in) {
  u32 w[64], h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (int i = 0; i < 16; ++i) w[i] = in[i];
  for (int i = 16; i < 64; ++i) {
    u32 a = rotate(w[i - 15], 25) ^ rotate(w[i - 15], 14) ^ w[i - 15] >> 3;
    u32 b = rotate(w[i - 2], 15) ^ rotate(w[i - 2], 13) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  for (int i = 0; i < 64; ++i) {
    u32 s = rotate(h[4], 26) ^ rotate(h[4], 21) ^ rotate(h[4], 7), c = (h[4] & h[5]) ^ (~h[4] & h[6]);
    u32 t = h[7] + s + c + w[i], m = (h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2]);
    for (int k = 7; k; --k) h[k] = h[k - 1];
    h[4] += t;
    h[0] = t + m;
  }
  return h[0] ^ h[3] ^ h[5];
}

NOINLINE u32 sorted(const u32* in) {
  u32 a[32];
  for (int i = 0; i < 32; ++i) a[i] = in[i];
  for (int i = 1; i < 32; ++i) {
    u32 x = a[i];
    int k = i;
    while (k > 0 && a[k - 1] > x) {
      a[k] = a[k - 1];
      --k;
    }
    a[k] = x;
  }
  u32 s = 0;
  for (int i = 0; i < 32; ++i) s = s * 31 + a[i];
  return s;
}

NOINLINE u64 wide(const u32* in) {
  u64 a = in[0] | (u64)in[1] << 32, b = (in[2] | (u64)in[3] << 32) >> (in[4] & 47) | 1;
  i64 c = (i64)(in[5] | (u64)in[6] << 32), d = (i64)(in[7] | (u64)in[8] << 32) >> (in[9] & 40);
  if (d == 0) d = -3;
  return a / b ^ a % b ^ (u64)(c / d) ^ (u64)(c % d) * 3 ^ a * (u64)c ^ (a << (in[10] & 63)) ^ (u64)(c >> (in[11] & 63));
}

NOINLINE u32 narrow(const u32* in) {
  const signed char* bytes = (const signed char*)in;
  const unsigned short* halves = (const unsigned short*)in;
  int s = 0;
  for (int i = 0; i < 40; ++i) {
    signed char x = (signed char)(bytes[i] * 3 + 7);
    unsigned short y = (unsigned short)(halves[i] * halves[i + 1] >> 3);
    short z = (short)(y << 2) / (short)(x | 1);
    s += x ^ y ^ z;
    s = (s << 1) ^ (s >> 7);
  }
  return (u32)s;
}

NOINLINE double invert(const u32* in) {
  double m[4][8];
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 8; ++k) m[i][k] = k < 4 ? (in[4 * i + k] & 1023) + (i == k ? 4096.0 : 0.0) : i == k - 4;
  for (int c = 0; c < 4; ++c) {
    double p = 1.0 / m[c][c];
    for (int k = 0; k < 8; ++k) m[c][k] *= p;
    for (int r = 0; r < 4; ++r) {
      if (r == c) continue;
      double f = m[r][c];
      for (int k = 0; k < 8; ++k) m[r][k] -= f * m[c][k];
    }
  }
  double s = 0;
  for (int i = 0; i < 4; ++i)
    for (int k = 4; k < 8; ++k) s += m[i][k] / (i + k);
  return s;
}

NOINLINE float floats(const u32* in) {
  float s = 0;
  for (int i = 0; i < 32; ++i) {
    float x = (float)(int)in[i] * 1e-6f, y = (float)in[i + 1] / 3.0f;
    switch (in[i] % 9) {
      case 0: s += x / y; break;
      case 1: s -= __builtin_sqrtf(y); break;
      case 2: s *= 0.5f; break;
      case 3: s += __builtin_floorf(x) - __builtin_ceilf(y) + __builtin_truncf(x * 0.1f); break;
      case 4: s = x < y ? s + 1 : s - 1; break;
      case 5: s += (float)(int)(x * 100) + (float)(unsigned)(y); break;
      case 6: s += __builtin_fabsf(x) - __builtin_copysignf(y, x); break;
      case 7: s += (float)((u64)in[i] * in[i + 1]) * 1e-12f + (float)((i64)in[i] - (i64)in[i + 1]); break;
      default: s += (float)(double)x * (float)(1.0 / (double)(y + 1));
    }
  }
  return s;
}

NOINLINE u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

NOINLINE u32 text(const u32* in) {
  char buffer[64];
  int n = 0;
  for (int i = 0; i < 5; ++i) {
    u32 x = in[i];
    do {
      buffer[n++] = (char)('0' + x % 10);
      x /= 10;
    } while (x);
    buffer[n++] = ',';
  }
  u32 hash = 5381;
  for (int i = 0; i < n; ++i) hash = hash * 33 ^ (unsigned char)buffer[n - 1 - i];
  return hash;
}

typedef struct { u32 key; float value; u32 next[3]; } Node;

NOINLINE u32 graph(const u32* in) {
  Node nodes[8];
  for (int i = 0; i < 8; ++i) {
    nodes[i].key = in[i];
    nodes[i].value = (float)(in[i + 8] & 0xffff);
    for (int k = 0; k < 3; ++k) nodes[i].next[k] = in[16 + 3 * i + k] & 7;
  }
  u32 at = in[40] & 7, s = 0;
  for (int i = 0; i < 50; ++i) {
    Node n = nodes[at];
    s += n.key ^ (u32)n.value;
    nodes[at].value += 1.5f;
    at = n.next[(s >> 5) % 3];
  }
  return s;
}

NOINLINE u32 bits(const u32* in) {
  u32 s = 0;
  for (int i = 0; i < 20; ++i) {
    u32 x = in[i];
    u64 y = x | (u64)in[i + 1] << 32;
    s += (u32)__builtin_popcount(x) + (x ? (u32)__builtin_clz(x) : 32) + (y ? (u32)__builtin_ctzll(y) : 64) * 7;
    s ^= __builtin_bitreverse32(x) + __builtin_bswap32(x) + (u32)(y >> (x & 31)) + (u32)__builtin_popcountll(y);
    s = (s << (x & 7)) | (s >> (32 - (x & 7)) % 32);
    s += (x >> 3 & 0x1ff) * ((int)(x << 9) >> 20);
  }
  return s;
}

DEVICE void program(const u32* in, u32* out) {
  out[0] = sha_like(in);
  out[1] = sorted(in);
  u64 w = wide(in);
  out[2] = (u32)w;
  out[3] = (u32)(w >> 32);
  out[4] = narrow(in);
  double d = invert(in);
  __builtin_memcpy(out + 5, &d, 8);
  float f = floats(in);
  __builtin_memcpy(out + 7, &f, 4);
  out[8] = fibonacci(in[0] % 9);
  out[9] = text(in);
  out[10] = graph(in);
  out[11] = bits(in);
}
