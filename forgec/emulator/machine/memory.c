/* Vector and scalar memory: address checks, loads, stores, atomics, in every space. Included by engine.c.
 *
 * Device addresses are host addresses inside one arena; `allocs` is sorted and says which bytes exist.
 * In checked mode every byte of the arena, LDS and a shadow byte beside it say whether it was ever written.
 */

typedef struct {
  u8 *p[W];   /* host pointer of each active lane */
  u8 *sh[W];  /* shadow byte of each active lane, or null */
  mask m;
} Lanes;

#include "fences.c"

static const Alloc *find_alloc(const Launch *L, u64 a) {
  u64 lo = 0, hi = L->n_allocs;
  while (lo < hi) {
    u64 mid = (lo + hi) / 2;
    if (L->allocs[mid].lo <= a) lo = mid + 1;
    else hi = mid;
  }
  return lo ? L->allocs + lo - 1 : 0;
}

static int check_global(Wave *w, u32 site, u32 lane, u64 a, u32 bytes, int write) {
  const Alloc *al = find_alloc(w->L, a);
  if (!al || a >= al->hi || a + bytes > al->hi) return emu_trap(w, TRAP_OUT_OF_BOUNDS, site, lane, a, bytes);
  if (al->flags & 1) return emu_trap(w, TRAP_FREED, site, lane, a, bytes);
  if (write && (al->flags & 2)) return emu_trap(w, TRAP_READ_ONLY, site, lane, a, bytes);
  return 0;
}

typedef u16 __attribute__((aligned(1), may_alias)) un16;
typedef u32 __attribute__((aligned(1), may_alias)) un32;
typedef u64 __attribute__((aligned(1), may_alias)) un64;
typedef u32 __attribute__((ext_vector_type(4))) V4;
typedef V4 __attribute__((aligned(1), may_alias)) un128;

/* check_race for whole words, four bytes at a time, where no other wave stands in the way; 0 if one may. */
static int no_race(Group *g, u32 me, u32 epoch, u32 at, u32 bytes, int kind) {
  for (u32 i = at; i < at + bytes; i += 4) {
    un128 *writes = (un128 *)(g->lds_write + i), *reads = (un128 *)(g->lds_read + i);
    V4 wr = *writes, rd = *reads;
    V4 written = (V4)(((wr & 0x3fffff00u) == epoch) & ((wr & 255u) != me));
    V4 read = (V4)(((rd & 0x3fffff00u) == epoch) & ((rd & 255u) != me));
    if (__builtin_reduce_or(kind == 0 ? written : written | read)) return 0;
    if (kind == 0) *reads = (read & (epoch | 255u)) | (~read & (epoch | me));
    else *writes = (V4)(epoch | me);
  }
  return 1;
}

/* LDS races: two waves touch a byte between two barriers and one of them writes another value. */
static int check_race(Wave *w, u32 site, u32 lane, u32 at, u32 bytes, int kind, const u8 *data) {
  Group *g = w->g;
  u32 me = w->id + 1, epoch = (g->phase & 0x3fffffu) << 8;
  if (kind < 2 && bytes % 4 == 0 && no_race(g, me, epoch, at, bytes, kind)) return 0;
  for (u32 i = at; i < at + bytes; ++i) {
    u32 wr = g->lds_write[i], rd = g->lds_read[i];
    int foreign_write = (wr & 0x3fffff00u) == epoch && (wr & 255) != me;
    int foreign_read = (rd & 0x3fffff00u) == epoch && (rd & 255) != me;
    int atomic = wr >> 31;
    if (kind == 0) { /* load */
      if (foreign_write && !atomic) return emu_trap(w, TRAP_LDS_RACE, site, lane, i, (wr & 255) - 1);
      g->lds_read[i] = epoch | ((rd & 0x3fffff00u) == epoch && (rd & 255) != me ? 255 : me);
    } else if (kind == 1) { /* store */
      int same = data && g->lds_defined[i] && g->lds[i] == data[i - at];
      if (foreign_write && (atomic || !same)) return emu_trap(w, TRAP_LDS_RACE, site, lane, i, (wr & 255) - 1);
      if (foreign_read && !same) return emu_trap(w, TRAP_LDS_RACE, site, lane, i, (rd & 255) - 1);
      if (!foreign_write) g->lds_write[i] = epoch | me;
    } else { /* atomic: ordered against other atomics and against polling loads */
      if (foreign_write && !atomic) return emu_trap(w, TRAP_LDS_RACE, site, lane, i, (wr & 255) - 1);
      g->lds_write[i] = 0x80000000u | epoch | me;
    }
  }
  return 0;
}

#include "profile.c"

/* Turns lane addresses into pointers, or traps. kind: 0 load, 1 store, 2 atomic. */
static int resolve(Wave *w, u32 site, int space, const U64 *addr, u32 bytes, int kind, Lanes *x) {
  Launch *L = w->L;
  mask m = x->m = EXEC;
  if (!m) return 0;
  u32 first = (u32)__builtin_ctzl(m);
  u32 align = kind == 2 ? bytes : L->strict_alignment ? (bytes == 12 ? 4 : bytes > 4 && L->strict_alignment < 2 ? 4 : bytes) : 1;
  if (align > 1) {
    U64 off = SEL64(lanes64(m), *addr & (u64)(align - 1), SPLAT(U64, 0));
    if (__builtin_reduce_or(off)) {
      for (u32 l = first; l < W; ++l)
        if (m >> l & 1 && (*addr)[l] & (align - 1)) return emu_trap(w, TRAP_MISALIGNED, site, l, (*addr)[l], align);
    }
  }
  if (space == SPACE_GLOBAL) {
    U64 a = SEL64(lanes64(m), *addr, SPLAT(U64, (*addr)[first]));
    u64 lo = __builtin_reduce_min(a), hi = __builtin_reduce_max(a) + bytes;
    const Alloc *al = L->allocs + w->last_alloc;
    if (w->last_alloc >= L->n_allocs || lo < al->lo || lo >= al->hi) {
      al = find_alloc(L, lo);
      if (al) w->last_alloc = (u32)(al - L->allocs);
    }
    if (!al || (al->flags & (kind ? 3 : 1)) || hi > al->hi || hi < lo) {
      for (u32 l = first; l < W; ++l)
        if (m >> l & 1 && check_global(w, site, l, a[l], bytes, kind)) return RUN_TRAP;
    }
    memcpy(x->p, &a, sizeof a);
    if (L->shadow)
      for (u32 l = 0; l < W; ++l) x->sh[l] = L->shadow + (a[l] - L->arena_lo);
    if (UNLIKELY(L->sites)) count_access(w, site, x, bytes, 0, kind == 0);
    return 0;
  }
  if (space == SPACE_LDS) {
    /* offsets are added modulo 2^32: since gfx9, LLVM folds them over negative bases */
    U64 a = SEL64(lanes64(m), *addr & 0xffffffffUL, SPLAT(U64, (*addr)[first] & 0xffffffffUL));
    if (__builtin_reduce_max(a) + bytes > L->lds_size) {
      for (u32 l = first; l < W; ++l)
        if (m >> l & 1 && a[l] + bytes > L->lds_size)
          return emu_trap(w, TRAP_LDS_BOUNDS, site, l, a[l], L->lds_size);
    }
    U64 p = a + (u64)w->g->lds, sh = a + (u64)w->g->lds_defined;
    memcpy(x->p, &p, sizeof p);
    if (L->checks) memcpy(x->sh, &sh, sizeof sh);
    if (UNLIKELY(L->sites)) count_access(w, site, x, bytes, 1, kind == 0);
    return 0;
  }
  int lds = 0;
  for (u32 l = first; l < W; ++l) {
    if (!(m >> l & 1)) continue;
    u64 a = (*addr)[l];
    int sp = space;
    if (sp == SPACE_FLAT) {
      sp = a >> 32 == SHARED_HI ? SPACE_LDS : a >> 32 == PRIVATE_HI ? SPACE_SCRATCH : SPACE_GLOBAL;
      if (sp != SPACE_GLOBAL) a = (u32)a;
    }
    x->sh[l] = 0;
    if (sp == SPACE_GLOBAL) {
      if (check_global(w, site, l, a, bytes, kind)) return RUN_TRAP;
      x->p[l] = (u8 *)a;
      if (L->shadow) x->sh[l] = L->shadow + (a - L->arena_lo);
    } else if (sp == SPACE_LDS) {
      if (a + bytes > L->lds_size) return emu_trap(w, TRAP_LDS_BOUNDS, site, l, a, L->lds_size);
      lds = 1;
      x->p[l] = w->g->lds + a;
      if (L->checks) x->sh[l] = w->g->lds_defined + a;
    } else {
      if (a + bytes > L->scratch_size) return emu_trap(w, TRAP_SCRATCH_BOUNDS, site, l, a, L->scratch_size);
      x->p[l] = w->scratch + (u64)l * L->scratch_size + a;
    }
  }
  if (UNLIKELY(L->sites)) count_access(w, site, x, bytes, lds, kind == 0);
  return 0;
}

static u64 defined_lanes(const Lanes *x, u32 from, u32 bytes) {
  u64 d = 0;
  for (u32 l = 0; l < W; ++l) {
    if (!(x->m >> l & 1)) continue;
    u32 ok = 1;
    if (x->sh[l])
      for (u32 i = 0; i < bytes; ++i) ok &= x->sh[l][from + i];
    d |= (u64)ok << l;
  }
  return d;
}

static int lds_races(Wave *w, u32 site, const Lanes *x, u32 bytes, int kind, int src) {
  for (u32 l = 0; l < W; ++l) {
    if (!(x->m >> l & 1) || x->p[l] < w->g->lds || x->p[l] >= w->g->lds + w->L->lds_size) continue;
    u8 data[16];
    if (kind == 1)
      for (u32 i = 0; i < bytes; ++i) data[i] = (u8)(w->v[src + i / 4][l] >> (8 * (i % 4)));
    if (check_race(w, site, l, (u32)(x->p[l] - w->g->lds), bytes, kind, kind == 1 ? data : 0)) return RUN_TRAP;
  }
  return 0;
}


/* n words from one lane's address to n registers, and back. Other workgroups run at the same time: two words travel
   whole, as they do on a GPU, so that who finds one half of what another wrote finds the other half too. */
static void load_lane(u32 *restrict out, u32 l, const u8 *p, int n) {
  int i = 0;
  for (; i + 1 < n; i += 2) {
    u64 both = *(const volatile un64 *)(p + 4 * i);
    out[i * W + l] = (u32)both;
    out[(i + 1) * W + l] = (u32)(both >> 32);
  }
  if (i < n) out[i * W + l] = *(const un32 *)(p + 4 * i);
}
static void store_lane(u8 *p, const u32 *in, u32 l, int n) {
  int i = 0;
  for (; i + 1 < n; i += 2) *(volatile un64 *)(p + 4 * i) = (u64)in[(i + 1) * W + l] << 32 | in[i * W + l];
  if (i < n) *(un32 *)(p + 4 * i) = in[i * W + l];
}

/* n words from each lane's address to n registers: four lanes at a time, whose words are transposed. */
static void load_all(u32 *restrict out, u8 *const *p, int n) {
  if (n == 4) {
    for (u32 l = 0; l < W; l += 4) {
      V4 a = *(const un128 *)p[l], b = *(const un128 *)p[l + 1];
      V4 c = *(const un128 *)p[l + 2], d = *(const un128 *)p[l + 3];
      V4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      V4 high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      *(V4 *)(out + l) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
      *(V4 *)(out + W + l) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      *(V4 *)(out + 2 * W + l) = __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5);
      *(V4 *)(out + 3 * W + l) = __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7);
    }
    return;
  }
  for (u32 l = 0; l < W; ++l) load_lane(out, l, p[l], n);
}

/* A wave that finds the same value at the same address again waits for another one: its turn ends at the next loop. */
static void poll(Wave *w, u64 address, u32 value) {
  if (address == w->poll_address && value == w->poll_value) {
    w->budget = 0;
    w->spins = 1;
  } else {
    w->budget -= 256;
  }
  w->poll_address = address;
  w->poll_value = value;
}

static int load(Wave *w, u32 site, int space, const U64 *addr, int dst, int bytes, int flags) {
  Lanes x;
  if (resolve(w, site, space, addr, (u32)bytes, 0, &x)) return RUN_TRAP;
  mask m = x.m;
  if (!m) return 0;
  if (w->L->records && space != SPACE_LDS && space != SPACE_SCRATCH && !(flags & F_DEVICE) &&
      fence_reads(w, site, &x, (u32)bytes))
    return RUN_TRAP;
  if (w->L->checks) {
    if (w->g->lds && space != SPACE_GLOBAL && lds_races(w, site, &x, (u32)bytes, 0, 0)) return RUN_TRAP;
    if (bytes < 4) {
      u64 d = defined_lanes(&x, 0, (u32)bytes);
      if (!(flags & F_D16_HI)) DSET_LO(dst, d, m);
      if (!(flags & F_D16)) DSET_HI(dst, d, m);
    }
    for (int i = 0; i < bytes / 4; ++i) {
      DSET_LO(dst + i, defined_lanes(&x, 4 * i, 2), m);
      DSET_HI(dst + i, defined_lanes(&x, 4 * i + 2, 2), m);
    }
  }
  if (bytes >= 4) {
    int n = bytes / 4;
    u32 *out = (u32 *)(w->v + dst);
    if (m == (mask)~(mask)0) {
      load_all(out, x.p, n);
    } else {
      for (mask r = m; r; r &= r - 1) {
        u32 l = (u32)__builtin_ctzl(r);
        load_lane(out, l, x.p[l], n);
      }
    }
    return 0;
  }
  u32 *out = (u32 *)(w->v + dst);
  for (mask r = m; r; r &= r - 1) {
    u32 l = (u32)__builtin_ctzl(r), value;
    if (bytes == 1) value = flags & F_SIGNED ? (u32)(i32)(i8)*x.p[l] : *x.p[l];
    else value = flags & F_SIGNED ? (u32)(i32)(i16)*(const un16 *)x.p[l] : *(const un16 *)x.p[l];
    if (flags & F_D16) out[l] = (out[l] & 0xffff0000u) | (value & 0xffffu);
    else if (flags & F_D16_HI) out[l] = (out[l] & 0xffffu) | value << 16;
    else out[l] = value;
  }
  return 0;
}

int emu_load(Wave *w, u32 site, int space, const U64 *addr, int dst, int bytes, int flags) {
  if (load(w, site, space, addr, dst, bytes, flags)) return RUN_TRAP;
  if (UNLIKELY(flags & (F_COHERENT | F_DEVICE)) && EXEC) {
    u32 first = (u32)__builtin_ctzl(EXEC);
    if (flags & F_COHERENT) poll(w, (*addr)[first], w->v[dst][first]);
    if (flags & F_DEVICE && w->L->records) fence_observe(w);
  }
  return 0;
}

int emu_store(Wave *w, u32 site, int space, const U64 *addr, int src, int bytes, int flags) {
  Lanes x;
  if (resolve(w, site, space, addr, (u32)bytes, 1, &x)) return RUN_TRAP;
  if (w->L->checks) {
    if (space != SPACE_GLOBAL && lds_races(w, site, &x, (u32)bytes, 1, src)) return RUN_TRAP;
    for (mask r = x.m; r; r &= r - 1) {
      u32 l = (u32)__builtin_ctzl(r);
      if (x.sh[l])
        for (int i = 0; i < bytes; ++i) x.sh[l][i] = (u8)((i & 2 || flags & F_D16_HI ? DHI(src + i / 4) : DLO(src + i / 4)) >> l & 1);
    }
  }
  if (w->L->records && x.m && space != SPACE_LDS && space != SPACE_SCRATCH) {
    fence_release(w);
    fence_wrote(w, &x, (u32)bytes);
  }
  const u32 *in = (const u32 *)(w->v + src);
  for (mask r = x.m; r; r &= r - 1) {
    u32 l = (u32)__builtin_ctzl(r);
    u32 value = flags & F_D16_HI ? in[l] >> 16 : in[l];
    switch (bytes) {
      case 1: *x.p[l] = (u8)value; break;
      case 2: *(un16 *)x.p[l] = (u16)value; break;
      case 4: __atomic_store_n((u32 *)x.p[l], value, __ATOMIC_RELAXED); break;
      default: store_lane(x.p[l], in, l, bytes / 4);
    }
  }
  return 0;
}

/* ---- atomics ---- */

enum {
  A_SWAP, A_CMPSWAP, A_ADD, A_SUB, A_RSUB, A_SMIN, A_UMIN, A_SMAX, A_UMAX, A_AND, A_OR, A_XOR, A_INC, A_DEC,
  A_FADD, A_FMIN, A_FMAX, A_PK_ADD_F16, A_PK_ADD_BF16, A_SUB_CLAMP, A_COND_SUB
};

static f32 as_f32(u64 x) { u32 b = (u32)x; f32 r; memcpy(&r, &b, 4); return r; }
static f64 as_f64(u64 x) { f64 r; memcpy(&r, &x, 8); return r; }
static u64 bits_f32(f32 x) { u32 b; memcpy(&b, &x, 4); return b; }
static u64 bits_f64(f64 x) { u64 b; memcpy(&b, &x, 8); return b; }

static u64 fminmax(u64 old, u64 v, int bits, int want_max) {
  f64 a = bits == 64 ? as_f64(old) : as_f32(old), b = bits == 64 ? as_f64(v) : as_f32(v);
  if (a != a) return v;
  if (b != b) return old;
  if (a == b) return (old >> (bits - 1)) != 0 == !want_max ? old : v;
  return (a < b) == !want_max ? old : v;
}

static u32 pk_add_f16(u32 a, u32 b) {
  u32 r = 0;
  for (int h = 0; h < 32; h += 16) {
    u16 x = (u16)(a >> h), y = (u16)(b >> h), z;
    f16 fx, fy, fz;
    memcpy(&fx, &x, 2);
    memcpy(&fy, &y, 2);
    fz = (f16)((f32)fx + (f32)fy);
    memcpy(&z, &fz, 2);
    r |= (u32)z << h;
  }
  return r;
}

static u32 bf16_round(f32 x) {
  u32 b = (u32)bits_f32(x);
  if (x != x) return (b | 0x400000u) >> 16;
  return (b + 0x7fffu + (b >> 16 & 1)) >> 16;
}

static u64 atomic_result(int op, int wide, u64 old, u64 v, u64 cmp) {
  int bits = wide ? 64 : 32;
  i64 so = wide ? (i64)old : (i64)(i32)old, sv = wide ? (i64)v : (i64)(i32)v;
  switch (op) {
    case A_SWAP: return v;
    case A_CMPSWAP: return old == cmp ? v : old;
    case A_ADD: return old + v;
    case A_SUB: return old - v;
    case A_RSUB: return v - old;
    case A_SMIN: return so < sv ? old : v;
    case A_UMIN: return old < v ? old : v;
    case A_SMAX: return so > sv ? old : v;
    case A_UMAX: return old > v ? old : v;
    case A_AND: return old & v;
    case A_OR: return old | v;
    case A_XOR: return old ^ v;
    case A_INC: return old >= v ? 0 : old + 1;
    case A_DEC: return old == 0 || old > v ? v : old - 1;
    case A_FADD: return wide ? bits_f64(as_f64(old) + as_f64(v)) : bits_f32(as_f32(old) + as_f32(v));
    case A_FMIN: return fminmax(old, v, bits, 0);
    case A_FMAX: return fminmax(old, v, bits, 1);
    case A_PK_ADD_F16: return pk_add_f16((u32)old, (u32)v);
    case A_PK_ADD_BF16:
      return bf16_round(as_f32(old << 16) + as_f32(v << 16)) |
             (u64)bf16_round(as_f32(old & 0xffff0000u) + as_f32(v & 0xffff0000u)) << 16;
    case A_SUB_CLAMP: return old < v ? 0 : old - v;
    case A_COND_SUB: return old >= v ? old - v : old;
  }
  return old;
}

/* flags: F_RETURN, bits 8..15: 1 = 64 bits; `src` holds the operand, `cmp` the comparand of A_CMPSWAP. */
int emu_atomic(Wave *w, u32 site, int space, const U64 *addr, int dst, int src, int cmp, int op, int flags) {
  int wide = flags >> F_WIDE_SHIFT & 1, bytes = wide ? 8 : 4;
  Lanes x;
  if (resolve(w, site, space, addr, (u32)bytes, 2, &x)) return RUN_TRAP;
  if (w->L->checks) {
    if (space != SPACE_GLOBAL && lds_races(w, site, &x, (u32)bytes, 2, 0)) return RUN_TRAP;
    u64 ok = op == A_SWAP ? ~0UL : defined_lanes(&x, 0, (u32)bytes), value = DV(src);
    if (wide) value &= DV(src + 1);
    if (op == A_CMPSWAP) value &= DV(cmp) & (wide ? DV(cmp + 1) : ~0UL);
    for (u32 l = 0; l < W; ++l) {
      if (!(x.m >> l & 1) || !x.sh[l]) continue;
      if (!(ok >> l & 1)) return emu_trap(w, TRAP_UNINIT_MEMORY, site, l, (*addr)[l], (u64)bytes);
      for (int i = 0; i < bytes; ++i) x.sh[l][i] = (u8)(value >> l & 1);
    }
    if (flags & F_RETURN)
      for (int i = 0; i < bytes / 4; ++i) DSET(dst + i, ~0UL, x.m);
  }
  int fenced = w->L->records && x.m && space != SPACE_LDS;
  if (fenced) {
    fence_release(w);
    fence_wrote(w, &x, (u32)bytes);
  }
  u64 changed = 0;
  w->budget -= 16;
  for (mask r = x.m; r; r &= r - 1) {
    u32 l = (u32)__builtin_ctzl(r);
    u64 v = w->v[src][l], c = op == A_CMPSWAP ? w->v[cmp][l] : 0, old;
    if (wide) {
      v |= (u64)w->v[src + 1][l] << 32;
      if (op == A_CMPSWAP) c |= (u64)w->v[cmp + 1][l] << 32;
      u64 *p = (u64 *)x.p[l], seen = __atomic_load_n(p, __ATOMIC_SEQ_CST);
      while (!__atomic_compare_exchange_n(p, &seen, atomic_result(op, 1, seen, v, c), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
      old = seen;
      changed |= old != atomic_result(op, 1, old, v, c);
    } else {
      u32 *p = (u32 *)x.p[l], seen = __atomic_load_n(p, __ATOMIC_SEQ_CST);
      while (!__atomic_compare_exchange_n(p, &seen, (u32)atomic_result(op, 0, seen, v, c), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
      old = seen;
      changed |= old != (u32)atomic_result(op, 0, old, v, c);
    }
    if (flags & F_RETURN) {
      w->v[dst][l] = (u32)old;
      if (wide) w->v[dst + 1][l] = (u32)(old >> 32);
    }
  }
  if (fenced && flags & F_RETURN) fence_observe(w);
  if (!changed && flags & F_RETURN && x.m) {
    u32 first = (u32)__builtin_ctzl(x.m);
    poll(w, (*addr)[first], w->v[dst][first]);
  }
  return 0;
}

/* ---- scalar memory ---- */

int emu_sload(Wave *w, u32 site, u64 addr, int dst, int bytes, int flags) {
  Launch *L = w->L;
  if (bytes >= 4 && addr & 3) return emu_trap(w, TRAP_MISALIGNED, site, 0, addr, 4);
  if (check_global(w, site, 0, addr, (u32)bytes, 0)) return RUN_TRAP;
  const u8 *p = (const u8 *)addr;
  if (UNLIKELY(L->sites)) count_scalar(w, addr, (u32)bytes);
  if (L->records && !(flags & F_DEVICE) && check_fence(w, site, 0, addr, (u32)bytes)) return RUN_TRAP;
  if (bytes < 4) {
    u32 x = bytes == 1 ? *p : *(const un16 *)p;
    if (flags & F_SIGNED) x = bytes == 1 ? (u32)(i32)(i8)x : (u32)(i32)(i16)x;
    w->s[dst] = x;
  } else {
    for (int i = 0; i < bytes / 4; ++i) w->s[dst + i] = ((const un32 *)p)[i];
  }
  if (flags & F_COHERENT) poll(w, addr, w->s[dst]);
  if (!L->checks) return 0;
  if (L->records && flags & F_DEVICE) fence_observe(w);
  const u8 *sh = L->shadow + (addr - L->arena_lo);
  for (int i = 0; i < (bytes + 3) / 4; ++i) {
    u32 ok = 1;
    for (int b = 4 * i; b < 4 * i + 4 && b < bytes; ++b) ok &= sh[b];
    w->ds[dst + i] = ok ? 0xffffffffu : 0;
  }
  return 0;
}
