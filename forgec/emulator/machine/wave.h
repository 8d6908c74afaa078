/* The state of one wave and the vector vocabulary of translated kernels.
 *
 * Comes in: -DW=32 or -DW=64 (lanes of a wave). Goes out: types, lane-wise helpers and the prototypes of the engine.
 * It never includes a system header: translated kernels are freestanding, and only link against engine.c.
 */
#ifndef FORGEC_WAVE_H
#define FORGEC_WAVE_H

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long u64;
typedef long i64;
typedef float f32;
typedef double f64;
typedef _Float16 f16;

#define VEC(type) type __attribute__((ext_vector_type(W)))
typedef VEC(u8) U8;
typedef VEC(i8) I8;
typedef VEC(u16) U16;
typedef VEC(i16) I16;
typedef VEC(u32) U32;
typedef VEC(i32) I32;
typedef VEC(u64) U64;
typedef VEC(i64) I64;
typedef VEC(f16) F16;
typedef VEC(f32) F32;
typedef VEC(f64) F64;
typedef VEC(_Bool) Bits;

#if W == 64
typedef u64 mask;
#else
typedef u32 mask;
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* What a wave function returns to the scheduler. */
enum { RUN_END = 0, RUN_BARRIER = 1, RUN_YIELD = 2, RUN_SLEEP = 3, RUN_TRAP = 4 };

/* Trap codes; traps.py holds the sentences. */
enum {
  TRAP_NONE, TRAP_OUT_OF_BOUNDS, TRAP_FREED, TRAP_MISALIGNED, TRAP_UNINIT_MEMORY, TRAP_UNINIT_ADDRESS,
  TRAP_UNINIT_BRANCH, TRAP_MISSING_WAIT, TRAP_LDS_BOUNDS, TRAP_LDS_RACE, TRAP_READ_ONLY, TRAP_BAD_PC,
  TRAP_SCRATCH_BOUNDS, TRAP_HANG, TRAP_S_TRAP, TRAP_BARRIER, TRAP_NO_MEMORY, TRAP_NOT_RELEASED, TRAP_NOT_ACQUIRED
};

enum { WAVE_LINES = 32 };

/* Memory spaces of an access. */
enum { SPACE_GLOBAL, SPACE_FLAT, SPACE_SCRATCH, SPACE_LDS };

/* Register numbers above the SGPR file proper (own numbering, the same for every family). */
enum { R_FLAT_LO = 102, R_FLAT_HI = 103, R_VCC = 106, R_TTMP0 = 108, R_M0 = 124, R_EXEC = 126 };

/* Counters that s_waitcnt looks at. */
enum { CNT_VM = 0, CNT_LGKM = 1, CNT_VS = 2, CNT_EXP = 3, CNT_KM = 4 };

/* What is in flight: a load into VGPRs or SGPRs, an event that only counts, a store, an atomic that returns to VGPRs. */
enum { PENDING_VECTOR, PENDING_SCALAR, PENDING_EVENT, PENDING_WRITE, PENDING_ATOMIC };

/* Cache maintenance at device scope: the L2 is written back, the caches before it are invalidated (those shared by
 * compute units, the wave's own). */
enum { FENCE_WRITE_BACK = 1, FENCE_INVALIDATE_OUTER = 2, FENCE_INVALIDATE_INNER = 4 };

typedef struct { u64 lo, hi; u32 flags, pad; } Alloc; /* flags: 1 freed, 2 read-only */

typedef struct {
  u32 code, site, lane, wave;
  u64 address, extra;
  u32 group[3], size;
} Trap;

struct Wave;
struct Group;

/* One launch, filled by machine.py; the field order is repeated there as a ctypes structure. */
typedef struct {
  int (*run)(struct Wave *);
  const Alloc *allocs;
  u64 n_allocs;
  u64 arena_lo, arena_hi;
  u8 *shadow;             /* one byte per arena byte: 1 = written; null = not checked */
  u64 *counts;            /* [threads][2 * segments]: executions, active lanes */
  u64 *sites;             /* [threads][4 * sites]: accesses, lines touched, lines needed, conflict cycles; null = off */
  u64 *lines;             /* [threads][3 * allocations]: lines fetched, different lines, different bytes */
  u64 *line_map;          /* one bit per arena byte: was loaded in this launch */
  u32 grid[3], block[3];
  u32 n_counts, n_sites;
  u32 lds_size, scratch_size, n_vgprs;
  u32 waves, checks, strict_alignment, mode;
  i32 sgpr_group[3];      /* register that receives the workgroup id, or -1 */
  i32 sgpr_scratch_offset;
  u32 packed_ids, id_dims, ttmp_ids;
  u32 sgprs[32];
  u32 n_init_sgprs, quantum;
  u64 seed;
  u64 code_base;
  /* visibility between workgroups (fences.c); records is null where it is not checked */
  u32 *records;           /* record of the last store to each arena byte */
  u32 *record_pages;      /* a recent record of each 4 KiB of the arena */
  u32 *record_group;      /* by record: the workgroup's number + 1 */
  u32 *record_released;   /* by record: the tick at which it was released, 0 before */
  u32 record_base, record_limit; /* records below the base are of earlier launches */
  u32 shared_cache;       /* all waves of a workgroup use one cache and one queue to memory */
  u32 writes_back;        /* a release has to write back the L2 */
  /* shared between workers */
  u64 next, total;
  u32 lock, stop;
  u32 record_next, clock;
  u32 residents;          /* workgroups that have started and not ended */
  struct Group *parked_head, *parked_tail, *pool;
  Trap trap;
} Launch;

typedef struct {
  u8 counter, kind, lo, n;  /* registers lo..lo+n */
  u32 agpr;
} Pending;

typedef struct {
  u32 number;
  u8 state, wave, by, pad;  /* by: the wave that writes it back */
} Record;
enum { MAX_RECORDS = 160 };

typedef struct Wave {
  U32 em;                 /* EXEC as lanes of all ones or zero */
  U32 *v;                 /* VGPRs, then AGPRs */
  u32 s[128];
  u32 scc, mode, pc, id;
  i64 budget;
  u64 *cnt;               /* this worker's segment counters */
  struct Group *g;
  Launch *L;
  u32 thread, status, alive, signal_phase;
  u32 last_alloc;         /* index of the allocation that was accessed last */
  u64 poll_address;       /* of the last load past the caches or atomic, what it brought, and whether that is a spin */
  u32 poll_value, spins;
  u32 lines[WAVE_LINES];  /* profiling: lines that were loaded lately, the last one first */
  u8 *scratch;            /* lane-major: lane l owns [l * scratch_size, (l + 1) * scratch_size) */
  u64 rng;
  /* checked mode */
  u64 *dv;                /* defined lanes of each VGPR: low half, high half */
  u32 ds[128];            /* defined bits of each SGPR */
  u32 dscc, n_pending;
  u8 *pv;                 /* outstanding counter + 1 of each VGPR, 0 = ready */
  u8 ps[128];
  u32 record, acquired;   /* of the stores since the last wait, 0 = none; tick of the last acquire */
  Pending queue[96];
} Wave;

typedef struct Group {
  struct Group *next;
  u32 id[3], n_waves, alive, arrived, phase;
  u8 *lds;
  u8 *lds_defined;        /* one byte per LDS byte */
  u32 *lds_write, *lds_read; /* epoch << 8 | wave + 1 (255: several); bit 31 of lds_write marks an atomic */
  Wave *waves;
  u32 number, n_records;
  u32 observed, outer, acquired; /* ticks: last observation, as of the last outer and inner invalidation */
  Record records[MAX_RECORDS];   /* not released yet */
} Group;

/* ---- lanes and masks ---- */
#define CV(x, T) __builtin_convertvector(x, T)
#define BC(T, x) __builtin_bit_cast(T, x)
#define BITS(c) ((mask)BC(mask, CV((c) != 0, Bits)))
INLINE U32 lanes32(mask m) { return -CV(BC(Bits, m), U32); }
INLINE U64 lanes64(mask m) { return -CV(BC(Bits, m), U64); }
INLINE U16 lanes16(mask m) { return (U16)(-CV(BC(Bits, m), U16)); }
#define SPLAT(T, x) ((T)(x))
#define SEL32(c, a, b) ((((U32)(c)) & (U32)(a)) | (~((U32)(c)) & (U32)(b)))
#define SELF32(c, a, b) ((F32)SEL32(c, a, b))
#define SEL64(c, a, b) ((((U64)(c)) & (U64)(a)) | (~((U64)(c)) & (U64)(b)))
#define SELF64(c, a, b) ((F64)SEL64(c, a, b))
#define SEL16(c, a, b) ((U16)((((U16)(c)) & (U16)(a)) | ((U16)(~((U16)(c))) & (U16)(b))))
#define SELF16(c, a, b) BC(F16, SEL16(c, BC(U16, a), BC(U16, b)))

#if W == 64
INLINE mask exec_mask(const Wave *w) { return (u64)w->s[R_EXEC] | (u64)w->s[R_EXEC + 1] << 32; }
#else
INLINE mask exec_mask(const Wave *w) { return w->s[R_EXEC]; }
#endif
#define EXEC exec_mask(w)
INLINE void exec_changed(Wave *w) { w->em = lanes32(exec_mask(w)); }
INLINE u32 popc64(u64 m) { return (u32)__builtin_popcountl(m); }
INLINE u64 s64(const Wave *w, int n) { return (u64)w->s[n] | (u64)w->s[n + 1] << 32; }
INLINE void set64(Wave *w, int n, u64 x) { w->s[n] = (u32)x; w->s[n + 1] = (u32)(x >> 32); }
#if W == 64
INLINE mask smask(const Wave *w, int n) { return s64(w, n); }
INLINE void set_mask(Wave *w, int n, mask m) { set64(w, n, m); }
#else
INLINE mask smask(const Wave *w, int n) { return w->s[n]; }
INLINE void set_mask(Wave *w, int n, mask m) { w->s[n] = m; }
#endif

/* ---- register access ---- */
#define WRITE32(n, x, m) (w->v[n] = SEL32(m, x, w->v[n]))
INLINE U64 pair64(U32 lo, U32 hi) { return CV(lo, U64) | (CV(hi, U64) << 32); }
#define READ64(n) pair64(w->v[n], w->v[(n) + 1])
#define WRITE64(n, x, m) do { U64 x_ = (U64)(x); WRITE32(n, CV(x_, U32), m); WRITE32((n) + 1, CV(x_ >> 32, U32), m); } while (0)
#define LOW16(x) CV((x), U16)
#define HIGH16(x) CV((x) >> 16, U16)
#define SET_LOW16(n, x, m) do { U32 x_ = CV((U16)(x), U32); WRITE32(n, (w->v[n] & 0xffff0000u) | x_, m); } while (0)
#define SET_HIGH16(n, x, m) do { U32 x_ = CV((U16)(x), U32) << 16; WRITE32(n, (w->v[n] & 0xffffu) | x_, m); } while (0)
#define ZERO_HIGH16(n, x, m) do { U32 x_ = CV((U16)(x), U32); WRITE32(n, x_, m); } while (0)
#define PACK16(lo, hi) (CV((U16)(lo), U32) | (CV((U16)(hi), U32) << 16))

/* ---- checked mode: which lanes of a register were ever written ---- */
#define DLO(n) (w->dv[2 * (n)])
#define DHI(n) (w->dv[2 * (n) + 1])
#define DV(n) (DLO(n) & DHI(n))
#define DALL(n) (w->ds[n] == 0xffffffffu ? ~0UL : 0UL)
#define DSET_LO(n, x, m) (DLO(n) = (DLO(n) & ~(u64)(m)) | ((x) & (u64)(m)))
#define DSET_HI(n, x, m) (DHI(n) = (DHI(n) & ~(u64)(m)) | ((x) & (u64)(m)))
#define DSET(n, x, m) do { u64 x_ = (x); DSET_LO(n, x_, m); DSET_HI(n, x_, m); } while (0)
INLINE u64 dmask(const Wave *w, int n) { return W == 64 ? (u64)w->ds[n] | (u64)w->ds[n + 1] << 32 : (u64)w->ds[n] | 0xffffffff00000000UL; }
INLINE void set_dmask(Wave *w, int n, u64 x) { w->ds[n] = (u32)x; if (W == 64) w->ds[n + 1] = (u32)(x >> 32); }
/* Registers that emu_busy looks at: n from lo, of which loads of the counter own - 1 may be in flight. */
#define BUSY_V(lo, n, own) ((u32)(lo) | (u32)(n) << 12 | (u32)(own) << 24)
#define BUSY_S(lo, n) (BUSY_V(lo, n, 0) | 1u << 31)
INLINE u64 gather_bits(u64 x, const u8 *from) { u64 r = 0; for (int i = 0; i < W; ++i) r |= (x >> from[i] & 1) << i; return r; }

/* ---- arithmetic ---- */
#define FMA(a, b, c) __builtin_elementwise_fma(a, b, c)
#define MIN(a, b) __builtin_elementwise_min(a, b)
#define MAX(a, b) __builtin_elementwise_max(a, b)
#define ABSF32(a) ((F32)((U32)(a) & 0x7fffffffu))
#define ABSF64(a) ((F64)((U64)(a) & 0x7fffffffffffffffUL))
#define ABSF16(a) BC(F16, (U16)(BC(U16, a) & (u16)0x7fff))
#define NEGF32(a) ((F32)((U32)(a) ^ 0x80000000u))
#define NEGF64(a) ((F64)((U64)(a) ^ 0x8000000000000000UL))
#define NEGF16(a) BC(F16, (U16)(BC(U16, a) ^ (u16)0x8000))
#define SAT_ADD(a, b) __builtin_elementwise_add_sat(a, b)
#define SAT_SUB(a, b) __builtin_elementwise_sub_sat(a, b)
INLINE U32 mulhi_u32(U32 a, U32 b) { return CV((CV(a, U64) * CV(b, U64)) >> 32, U32); }
INLINE I32 mulhi_i32(I32 a, I32 b) { return CV((CV(a, I64) * CV(b, I64)) >> 32, I32); }
INLINE I32 sext_bits(I32 a, int bits) { return (a << (32 - bits)) >> (32 - bits); }
INLINE F32 to_f32(F16 a) { return CV(a, F32); }
INLINE F16 to_f16(F32 a) { return CV(a, F16); }
/* IEEE minimumNumber with -0 < +0, quieting: a NaN loses against a number. */
INLINE F32 min_f32(F32 a, F32 b) {
  I32 tie = (a == b);
  F32 m = SELF32((a < b) | (b != b), a, b);
  return SELF32(tie, (F32)((U32)a | (U32)b), m);
}
INLINE F32 max_f32(F32 a, F32 b) {
  I32 tie = (a == b);
  F32 m = SELF32((a > b) | (b != b), a, b);
  return SELF32(tie, (F32)((U32)a & (U32)b), m);
}
INLINE F64 min_f64(F64 a, F64 b) {
  I64 tie = (a == b);
  F64 m = SELF64((a < b) | (b != b), a, b);
  return SELF64(tie, (F64)((U64)a | (U64)b), m);
}
INLINE F64 max_f64(F64 a, F64 b) {
  I64 tie = (a == b);
  F64 m = SELF64((a > b) | (b != b), a, b);
  return SELF64(tie, (F64)((U64)a & (U64)b), m);
}
/* gfx12 minimum/maximum: a NaN wins. */
INLINE F32 minimum_f32(F32 a, F32 b) { F32 m = min_f32(a, b); I32 n = (a != a) | (b != b); return SELF32(n, (F32)SPLAT(U32, 0x7fc00000u), m); }
INLINE F32 maximum_f32(F32 a, F32 b) { F32 m = max_f32(a, b); I32 n = (a != a) | (b != b); return SELF32(n, (F32)SPLAT(U32, 0x7fc00000u), m); }
INLINE F16 min_f16(F16 a, F16 b) { return to_f16(min_f32(to_f32(a), to_f32(b))); }
INLINE F16 max_f16(F16 a, F16 b) { return to_f16(max_f32(to_f32(a), to_f32(b))); }
INLINE F32 med3_f32(F32 a, F32 b, F32 c) {
  F32 lo = min_f32(a, b), hi = max_f32(a, b);
  F32 m = max_f32(lo, min_f32(hi, c));
  I32 n = (a != a) | (b != b) | (c != c);
  return SELF32(n, min_f32(min_f32(a, b), c), m);
}
#define MED3(a, b, c) MAX(MIN(a, b), MIN(MAX(a, b), c))
/* Conversions with the hardware's saturation; a NaN becomes zero. */
INLINE U32 f32_to_u32(F32 a) {
  F32 t = SELF32(a >= 0.0f, a, SPLAT(F32, 0.0f));
  U64 r = CV(MIN(t, SPLAT(F32, 4294967296.0f)), U64);
  r = SEL64(CV(t >= 4294967296.0f, I64), SPLAT(U64, 0xffffffffUL), r);
  return CV(r, U32);
}
INLINE I32 f32_to_i32(F32 a) {
  F32 t = SELF32(a == a, a, SPLAT(F32, 0.0f));
  I32 big = t >= 2147483648.0f, small = t <= -2147483648.0f;
  I32 r = CV(SELF32(big | small, SPLAT(F32, 0.0f), t), I32);
  r = (I32)SEL32(big, SPLAT(U32, 0x7fffffffu), r);
  return (I32)SEL32(small, SPLAT(U32, 0x80000000u), r);
}
INLINE U32 f64_to_u32(F64 a) {
  F64 t = SELF64(a >= 0.0, a, SPLAT(F64, 0.0));
  t = SELF64(t > 4294967295.0, SPLAT(F64, 4294967295.0), t);
  return CV(CV(t, U64), U32);
}
INLINE I32 f64_to_i32(F64 a) {
  F64 t = SELF64(a == a, a, SPLAT(F64, 0.0));
  t = SELF64(t > 2147483647.0, SPLAT(F64, 2147483647.0), t);
  t = SELF64(t < -2147483648.0, SPLAT(F64, -2147483648.0), t);
  return CV(CV(t, I64), I32);
}
INLINE U16 f32_to_u16_sat(F32 a) { return CV(MIN(f32_to_u32(a), SPLAT(U32, 0xffffu)), U16); }
INLINE I16 f32_to_i16_sat(F32 a) { return CV(MAX(MIN(f32_to_i32(a), SPLAT(I32, 32767)), SPLAT(I32, -32768)), I16); }
/* f64 -> f16 with one rounding: first to f32 rounding to odd, which keeps the sticky bit. */
INLINE F16 f64_to_f16(F64 a) {
  F32 r = CV(a, F32);
  F64 back = CV(r, F64);
  U32 bits = (U32)r;
  I32 exact = CV(back == a, I32) | (r != r);
  I32 away = CV(ABSF64(back) > ABSF64(a), I32);
  U32 odd = (bits - ((U32)away & 1u)) | 1u;
  return to_f16((F32)SEL32(exact, bits, odd));
}
INLINE F16 fma_f16(F16 a, F16 b, F16 c) { return f64_to_f16(CV(a, F64) * CV(b, F64) + CV(c, F64)); }
/* f32 -> f16 rounding toward zero (v_cvt_pk_rtz). */
INLINE F16 f16_rtz(F32 a) {
  F16 r = to_f16(a);
  I32 away = ABSF32(to_f32(r)) > ABSF32(a);
  U16 bits = BC(U16, r);
  I16 step = CV(away, I16);
  return BC(F16, (U16)(bits + BC(U16, step)));
}
INLINE F32 bf16_to_f32(U16 a) { return (F32)(CV(a, U32) << 16); }
INLINE U16 f32_to_bf16(F32 a) {
  U32 b = (U32)a;
  U32 r = b + 0x7fffu + ((b >> 16) & 1u);
  r = SEL32(a != a, b | 0x400000u, r);
  return CV(r >> 16, U16);
}
/* Flush denormals: the f32 transcendental unit ignores the mode register and never sees or makes denormals. */
INLINE F32 flush_f32(F32 a) {
  U32 b = (U32)a;
  return (F32)SEL32((b & 0x7f800000u) == 0u, b & 0x80000000u, b);
}
INLINE F32 rcp_f32(F32 a) { return flush_f32(1.0f / flush_f32(a)); }
INLINE F32 sqrt_f32(F32 a) { return __builtin_elementwise_sqrt(flush_f32(a)); }
INLINE F32 rsq_f32(F32 a) { return CV(1.0 / __builtin_elementwise_sqrt(CV(flush_f32(a), F64)), F32); }
/* fract: x - floor(x), kept below 1. */
INLINE F32 fract_f32(F32 a) { F32 r = a - __builtin_elementwise_floor(a); return min_f32(r, (F32)SPLAT(U32, 0x3f7fffffu)); }
INLINE F64 fract_f64(F64 a) { F64 r = a - __builtin_elementwise_floor(a); return min_f64(r, (F64)SPLAT(U64, 0x3fefffffffffffffUL)); }
/* mul_legacy: 0 times anything is 0. */
INLINE F32 mul_legacy(F32 a, F32 b) { return SELF32((a == 0.0f) | (b == 0.0f), SPLAT(F32, 0.0f), a * b); }
INLINE F32 fma_legacy(F32 a, F32 b, F32 c) { return SELF32((a == 0.0f) | (b == 0.0f), c, FMA(a, b, c)); }
INLINE F32 clamp_f32(F32 a) { F32 r = SELF32(a > 0.0f, a, SPLAT(F32, 0.0f)); return SELF32(r < 1.0f, r, SPLAT(F32, 1.0f)); }
INLINE F64 clamp_f64(F64 a) { F64 r = SELF64(a > 0.0, a, SPLAT(F64, 0.0)); return SELF64(r < 1.0, r, SPLAT(F64, 1.0)); }
INLINE F16 clamp_f16(F16 a) { return to_f16(clamp_f32(to_f32(a))); }
INLINE U32 lane_ids(void) { U32 r; for (int i = 0; i < W; ++i) r[i] = (u32)i; return r; }
INLINE I32 dot4(U32 a, U32 b, int sa, int sb) {
  I32 r = SPLAT(I32, 0);
  for (int i = 0; i < 4; ++i) {
    I32 x = sa ? ((I32)(a << (24 - 8 * i)) >> 24) : (I32)((a >> (8 * i)) & 255u);
    I32 y = sb ? ((I32)(b << (24 - 8 * i)) >> 24) : (I32)((b >> (8 * i)) & 255u);
    r += x * y;
  }
  return r;
}
INLINE I32 dot8(U32 a, U32 b, int sa, int sb) {
  I32 r = SPLAT(I32, 0);
  for (int i = 0; i < 8; ++i) {
    I32 x = sa ? ((I32)(a << (28 - 4 * i)) >> 28) : (I32)((a >> (4 * i)) & 15u);
    I32 y = sb ? ((I32)(b << (28 - 4 * i)) >> 28) : (I32)((b >> (4 * i)) & 15u);
    r += x * y;
  }
  return r;
}

/* ---- floating-point environment: MODE register -> MXCSR ---- */
INLINE void set_mxcsr(u32 x) { __asm__ volatile("ldmxcsr %0" : : "m"(x) : "memory"); }
INLINE u32 mxcsr_of_mode(u32 mode) {
  static const u32 rounding[4] = {0, 2, 1, 3}; /* even, +inf, -inf, zero */
  u32 denorm = (mode >> 4) & 3;
  return 0x1f80u | rounding[mode & 3] << 13 | (denorm & 2 ? 0 : 0x8000u) | (denorm & 1 ? 0 : 0x40u);
}
/* For an f64/f16 operation when the f64/f16 fields of MODE differ from the f32 fields. */
INLINE void mode_f64(const Wave *w) { set_mxcsr(mxcsr_of_mode(((w->mode >> 2) & 3) | ((w->mode >> 2) & 0x30))); }
INLINE void mode_f32(const Wave *w) { set_mxcsr(mxcsr_of_mode(w->mode)); }

/* Access flags; F_COHERENT: past the compute unit's cache, F_DEVICE: seen by the whole device; F_WIDE_SHIFT: position of the 64-bit flag of an atomic. */
enum { F_SIGNED = 1, F_D16 = 2, F_D16_HI = 4, F_RETURN = 8, F_COHERENT = 16, F_DEVICE = 32, F_WIDE_SHIFT = 8 };

/* ---- engine (engine.c, memory.c, vmath.c, matrix.c) ---- */
int emu_trap(Wave *w, u32 code, u32 site, u32 lane, u64 address, u64 extra);
int emu_busy(Wave *w, u32 site, int count, const u32 *ranges);
int emu_load(Wave *w, u32 site, int space, const U64 *addr, int dst, int bytes, int flags);
int emu_store(Wave *w, u32 site, int space, const U64 *addr, int src, int bytes, int flags);
int emu_atomic(Wave *w, u32 site, int space, const U64 *addr, int dst, int src, int cmp, int op, int flags);
int emu_sload(Wave *w, u32 site, u64 addr, int dst, int bytes, int flags);
void emu_wait(Wave *w, int counter, u32 limit);
void emu_fence(Wave *w, int what);
void emu_issue(Wave *w, int counter, int kind, int lo, int n);
void emu_bpermute(Wave *w, int dst, int addr, int data, int offset);
void emu_permute(Wave *w, int dst, int addr, int data, int offset);
void emu_swizzle(Wave *w, int dst, int src, int offset);
int emu_barrier_signal(Wave *w);
int emu_barrier_wait(Wave *w);
F32 emu_exp2(F32 a);
F32 emu_log2(F32 a);
F32 emu_sin(F32 a);
F32 emu_cos(F32 a);
void emu_wmma(Wave *w, int op, int d, int a, int b, int c, u64 c_const, int flags);
void emu_mfma(Wave *w, int op, int d, int a, int b, int c, u64 c_const, int flags);
int emu_worker(Launch *L, u32 thread);

#endif
